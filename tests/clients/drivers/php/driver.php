<?php

// Calls WeChat as EasyWeChat does for each line on standard input, and prints the errcode, 0 where all was well.

declare(strict_types=1);

namespace EasyWeChat\Kernel\Contracts {
    interface AccessToken
    {
        public function getToken(): string;

        public function toQuery(): array;
    }

    interface RefreshableAccessToken extends AccessToken
    {
        public function refresh(): string;
    }
}

namespace Psr\SimpleCache {
    interface CacheInterface
    {
        public function get(string $key, mixed $default = null): mixed;

        public function set(string $key, mixed $value, null|int|\DateInterval $ttl = null): bool;
    }
}

namespace Symfony\Contracts\HttpClient {
    interface ResponseInterface
    {
        public function getHeaders(bool $throw = true): array;

        public function getContent(bool $throw = true): string;
    }

    interface ResponseStreamInterface
    {
    }

    interface HttpClientInterface
    {
        public function request(string $method, string $url, array $options = []): ResponseInterface;

        public function stream(ResponseInterface|iterable $responses, ?float $timeout = null): ResponseStreamInterface;

        public function withOptions(array $options): static;
    }
}

namespace {
    use Psr\SimpleCache\CacheInterface;
    use Symfony\Contracts\HttpClient\HttpClientInterface;
    use Symfony\Contracts\HttpClient\ResponseInterface;
    use Symfony\Contracts\HttpClient\ResponseStreamInterface;
    use WeChatTokenKeeper\HealingHttpClient;
    use WeChatTokenKeeper\TokenKeeper;

    require $argv[5];

    final class ArrayCache implements CacheInterface
    {
        private array $values = [];

        public function get(string $key, mixed $default = null): mixed
        {
            return $this->values[$key] ?? $default;
        }

        public function set(string $key, mixed $value, null|int|\DateInterval $ttl = null): bool
        {
            $this->values[$key] = $value;

            return true;
        }
    }

    final class Response implements ResponseInterface
    {
        public function __construct(private string $content)
        {
        }

        public function getHeaders(bool $throw = true): array
        {
            return ['content-type' => ['application/json; encoding=utf-8']];
        }

        public function getContent(bool $throw = true): string
        {
            return $this->content;
        }
    }

    final class HttpClient implements HttpClientInterface
    {
        public function request(string $method, string $url, array $options = []): ResponseInterface
        {
            return new Response(file_get_contents($url.'?'.http_build_query($options['query'])));
        }

        public function stream(ResponseInterface|iterable $responses, ?float $timeout = null): ResponseStreamInterface
        {
            throw new \LogicException();
        }

        public function withOptions(array $options): static
        {
            return $this;
        }
    }

    [, $url, $key, $appId, $wechat] = $argv;
    $keeper = new TokenKeeper($url, key: $key, appId: $appId, cache: new ArrayCache());
    $client = new HealingHttpClient(new HttpClient(), $keeper);
    while (fgets(STDIN) !== false) {
        try {
            $response = $client->request('GET', "$wechat/cgi-bin/get_api_domain_ip", ['query' => $keeper->toQuery()]);
            echo json_decode($response->getContent(), true)['errcode'] ?? 0, "\n";
        } catch (\RuntimeException $error) {
            echo $error->getMessage(), "\n";
        }
    }
}
