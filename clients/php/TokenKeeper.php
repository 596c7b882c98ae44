<?php

// Access tokens of a wechat-token-keeper for EasyWeChat 6 (PHP 8.1 and newer). Copy this file.
//
// Checked: parsed by PHP, and run by the tests against the local stack, with EasyWeChat's and Symfony's interfaces as stubs;
// run by hand with EasyWeChat's own code (6.x, commit 7a93b804) and Symfony 5.4.
//
//   $keeper = new TokenKeeper('https://….execute-api.….amazonaws.com', key: 'wtk_…', appId: 'wx…', cache: $app->getCache());
//   $app->setAccessToken($keeper)->setHttpClient(new HealingHttpClient($app->getHttpClient(), $keeper));
//
// For 企业微信: the same with isCorp: true, the corpid as appId, and the key of a consumer of that one app.

declare(strict_types=1);

namespace WeChatTokenKeeper;

use EasyWeChat\Kernel\Contracts\RefreshableAccessToken;
use Psr\SimpleCache\CacheInterface;
use Symfony\Contracts\HttpClient\HttpClientInterface;
use Symfony\Contracts\HttpClient\ResponseInterface;
use Symfony\Contracts\HttpClient\ResponseStreamInterface;

/** One account of a token keeper. `cache` carries the token from one request of PHP to the next. */
final class TokenKeeper implements RefreshableAccessToken
{
    private const MAX_CACHE_SECONDS = 60;
    private const PAUSE_AFTER_FAILURE = 2;
    private const TIMEOUT = 25; // seconds; the keeper's own limit is 20

    public function __construct(
        private string $url,
        #[\SensitiveParameter] private string $key,
        private string $appId,
        private CacheInterface $cache,
        private bool $isCorp = false,
    ) {
        if (! str_starts_with($key, 'wtk_')) {
            throw new \InvalidArgumentException('The key is not a consumer key: `token-keeper consumers add` makes one.');
        }
        $this->url = rtrim($url, '/');
    }

    /** The current token, asked for once a minute. While the keeper cannot be asked, the cached one serves as promised. */
    public function getToken(): string
    {
        $cached = $this->cached();
        if ($cached !== null && time() < $cached['fresh_until']) {
            return $cached['token'];
        }
        try {
            return $this->ask(false);
        } catch (KeeperUnavailable $error) {
            if ($cached === null || time() >= $cached['promised_until']) {
                throw $error;
            }
            $this->store(['fresh_until' => time() + self::PAUSE_AFTER_FAILURE] + $cached);

            return $cached['token'];
        }
    }

    /** @return array<string, string> */
    public function toQuery(): array
    {
        return ['access_token' => $this->getToken()];
    }

    /** EasyWeChat calls this where WeChat refused the current token. */
    public function refresh(): string
    {
        return $this->report($this->getToken());
    }

    /** Report that WeChat refused this token, once for each value; returns the one to go on with. */
    public function report(#[\SensitiveParameter] string $refused): string
    {
        $cached = $this->cached();
        if ($cached === null || $cached['token'] !== $refused || $cached['reported']) {
            return $this->getToken();
        }
        // A report is about the keeper's current token: is that still this one?
        $current = $this->ask(false);
        if ($current === $refused && ! $this->isCorp) {
            $current = $this->ask(true);
        }
        if ($current === $refused) {
            $this->store(['reported' => true] + $this->cached());
        }

        return $current;
    }

    private function ask(bool $force): string
    {
        $askedAt = time();
        $http = ['timeout' => self::TIMEOUT, 'ignore_errors' => true, 'follow_location' => 0];
        $url = $this->url.'/cgi-bin/stable_token';
        if ($this->isCorp) {
            $query = ['corpid' => $this->appId, 'corpsecret' => $this->key];
            $url = $this->url.'/cgi-bin/gettoken?'.http_build_query($query);
        } else {
            $http += ['method' => 'POST', 'header' => 'Content-Type: application/json', 'content' => json_encode([
                'grant_type' => 'client_credential', 'appid' => $this->appId, 'secret' => $this->key, 'force_refresh' => $force,
            ])];
        }
        // Silenced, as a warning would show the URL.
        $body = @file_get_contents($url, false, stream_context_create(['http' => $http]), 0, 65536);
        $reply = $body === false ? null : json_decode($body, true);
        $errcode = is_array($reply) ? (int) ($reply['errcode'] ?? 0) : null;
        if ($errcode === 40125 || $errcode === 40013) {
            throw new \RuntimeException("errcode $errcode: the key is wrong or revoked, or may not read {$this->appId}. See `token-keeper consumers list`.");
        }
        if ($errcode === null) {
            throw new KeeperUnavailable('The token keeper did not respond: check its address and the network.');
        }
        $token = $reply['access_token'] ?? null;
        $expiresIn = $reply['expires_in'] ?? 0;
        if (! is_string($token) || $token === '' || ! is_int($expiresIn) || $expiresIn < 1) {
            throw new KeeperUnavailable("No usable token for {$this->appId} right now: `token-keeper status` shows why.");
        }
        $before = $this->cached();
        $this->store([
            'token' => $token,
            'fresh_until' => $askedAt + min($expiresIn, self::MAX_CACHE_SECONDS),
            'promised_until' => $askedAt + $expiresIn,
            'reported' => $before !== null && $before['token'] === $token && $before['reported'],
        ]);

        return $token;
    }

    /** @return array{token: string, fresh_until: int, promised_until: int, reported: bool}|null */
    private function cached(): ?array
    {
        $cached = $this->cache->get($this->cacheKey());

        return is_array($cached) ? $cached : null;
    }

    private function store(array $entry): void
    {
        $this->cache->set($this->cacheKey(), $entry, max(1, $entry['promised_until'] - time()));
    }

    private function cacheKey(): string
    {
        return 'token-keeper.'.substr(hash('sha256', "{$this->url} {$this->appId} {$this->key}"), 0, 32);
    }
}

/** The keeper did not respond, or has no usable token right now: asking again later helps. */
final class KeeperUnavailable extends \RuntimeException
{
}

/** Repeats a call once with the successor where WeChat refuses the keeper's token. EasyWeChat's own retry sends the old one. */
final class HealingHttpClient implements HttpClientInterface
{
    public function __construct(private HttpClientInterface $client, private TokenKeeper $keeper)
    {
    }

    public function request(string $method, string $url, array $options = []): ResponseInterface
    {
        $response = $this->client->request($method, $url, $options);
        $refused = $options['query']['access_token'] ?? null;
        if ($refused === null || ! self::refusesToken($response)) {
            return $response;
        }
        try {
            $successor = $this->keeper->report($refused);
        } catch (\RuntimeException) {
            return $response;
        }
        $body = $options['body'] ?? '';
        if ($successor === $refused || ! (is_string($body) || is_array($body))) {
            return $response; // a stream as a body cannot be sent again
        }
        $options['query']['access_token'] = $successor;

        return $this->client->request($method, $url, $options);
    }

    public function stream($responses, ?float $timeout = null): ResponseStreamInterface
    {
        return $this->client->stream($responses, $timeout);
    }

    public function withOptions(array $options): static
    {
        return new static($this->client->withOptions($options), $this->keeper);
    }

    private static function refusesToken(ResponseInterface $response): bool
    {
        $type = $response->getHeaders(false)['content-type'][0] ?? '';
        if (! str_starts_with($type, 'application/json') && ! str_starts_with($type, 'text/')) {
            return false;
        }
        $reply = json_decode($response->getContent(false), true);

        return is_array($reply) && in_array($reply['errcode'] ?? 0, [40001, 40014, 42001], true);
    }
}
