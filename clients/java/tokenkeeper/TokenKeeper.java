// Access tokens of a wechat-token-keeper for Java 11 and newer. Copy this file, and for WxJava 4.7 one of its neighbours:
//
//   TokenKeeper keeper = new TokenKeeper("https://….execute-api.….amazonaws.com", "wtk_…", "wx…");
//   wxMpService.setWxMpConfigStorage(new KeeperMpConfig(keeper));      // 公众号
//   wxMaService.setWxMaConfig(new KeeperMaConfig(keeper));             // 小程序
//   wxCpService.setWxCpConfigStorage(new KeeperCpConfig(TokenKeeper.corp(url, "wtk_…", "ww…")));  // 企业微信
//
// Checked: compiled with Java 17 and run against the local stack by the tests, WxJava's classes being stubs of what is
// overridden; compiled by hand with WxJava's own classes (4.7.2.B), of which 企业微信's were also run by hand, and the others
// read. WxJava itself tries once more where a token is refused. Note that it logs the URL of a failed call, with the token,
// at WARN.
package tokenkeeper;

import java.io.IOException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** One account of a token keeper. Make one for each account, and share it: threads may. */
public final class TokenKeeper {
  private static final double MAX_CACHE_SECONDS = 60;
  private static final double PAUSE_AFTER_FAILURE = 2;
  private static final Duration TIMEOUT = Duration.ofSeconds(25); // the keeper's own limit is 20 s
  private static final Pattern TOKEN = Pattern.compile("\"access_token\"\\s*:\\s*\"([^\"\\\\]+)\"");
  private static final Pattern NUMBER = Pattern.compile("\"(expires_in|errcode)\"\\s*:\\s*(-?\\d{1,9})");

  /** The keeper did not respond, or has no usable token right now: asking again later helps. */
  public static final class UnavailableException extends IllegalStateException {
    private static final long serialVersionUID = 1L;

    UnavailableException(String message) {
      super(message);
    }
  }

  private final HttpClient client = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(5)).build();
  private final String url;
  private final String key;
  private final String appId;
  private final boolean isCorp;

  private String token;
  private long askedAtNanos;
  private long askedAtMillis;
  private double cacheFor;
  private double expiresIn;
  private String reported;

  /** An Official Account or Mini Program. The key is a consumer's, never the AppSecret. */
  public TokenKeeper(String url, String key, String appId) {
    this(url, key, appId, false);
  }

  /** One app of a WeCom corp, with the key of a consumer that may read this app only. */
  public static TokenKeeper corp(String url, String key, String corpId) {
    return new TokenKeeper(url, key, corpId, true);
  }

  private TokenKeeper(String url, String key, String appId, boolean isCorp) {
    if (!key.startsWith("wtk_")) {
      throw new IllegalArgumentException("The key is not a consumer key: `token-keeper consumers add` makes one.");
    }
    this.url = url.replaceAll("/+$", "");
    this.key = key;
    this.appId = appId;
    this.isCorp = isCorp;
  }

  public String appId() {
    return appId;
  }

  /** The current token, asked for once a minute. While the keeper cannot be asked, the cached one serves as promised. */
  public synchronized String token() {
    if (token != null && age() < cacheFor) {
      return token;
    }
    try {
      ask(false);
    } catch (UnavailableException error) {
      if (token == null || age() >= expiresIn) {
        throw error;
      }
      cacheFor = Math.min(age() + PAUSE_AFTER_FAILURE, expiresIn);
    }
    return token;
  }

  /** Report that WeChat refused the token that is cached here; once for each value. */
  public synchronized void reportCurrent() {
    String refused = token;
    if (refused == null || refused.equals(reported)) {
      return;
    }
    // A report is about the keeper's current token: is that still this one?
    ask(false);
    if (refused.equals(token) && !isCorp) {
      ask(true);
    }
    reported = refused;
  }

  /** No exception carries the URL or the body, as they hold the key. */
  private void ask(boolean force) {
    long nanos = System.nanoTime();
    long millis = System.currentTimeMillis();
    HttpRequest.Builder request = HttpRequest.newBuilder().timeout(TIMEOUT);
    if (isCorp) {
      request.uri(URI.create(url + "/cgi-bin/gettoken?corpid=" + encoded(appId) + "&corpsecret=" + encoded(key)));
    } else {
      String body =
          String.format(
              "{\"grant_type\":\"client_credential\",\"appid\":\"%s\",\"secret\":\"%s\",\"force_refresh\":%s}",
              appId, key, force);
      request
          .uri(URI.create(url + "/cgi-bin/stable_token"))
          .header("Content-Type", "application/json")
          .POST(HttpRequest.BodyPublishers.ofString(body));
    }
    HttpResponse<String> response;
    try {
      response = client.send(request.build(), HttpResponse.BodyHandlers.ofString());
    } catch (IOException error) {
      String cause = error.getClass().getSimpleName();
      throw new UnavailableException("The token keeper did not respond (" + cause + "): check its address.");
    } catch (InterruptedException error) {
      Thread.currentThread().interrupt();
      throw new UnavailableException("Interrupted while the token keeper was asked.");
    }
    Matcher found = TOKEN.matcher(response.body());
    int errcode = number(response.body(), "errcode");
    int seconds = number(response.body(), "expires_in");
    if (errcode == 40125 || errcode == 40013) {
      throw new IllegalStateException(
          "errcode " + errcode + ": the key is wrong or revoked, or may not read " + appId
              + ". See `token-keeper consumers list`.");
    }
    if (response.statusCode() != 200 || !found.find() || seconds < 1) {
      throw new UnavailableException(
          "HTTP " + response.statusCode() + ", errcode " + errcode + ": no usable token for " + appId
              + " right now. `token-keeper status` shows why.");
    }
    token = found.group(1);
    askedAtNanos = nanos;
    askedAtMillis = millis;
    expiresIn = seconds;
    cacheFor = Math.min(seconds, MAX_CACHE_SECONDS);
  }

  /** Seconds, by the clock that has advanced further: the monotonic one stands still while a machine sleeps. */
  private double age() {
    double monotonic = (System.nanoTime() - askedAtNanos) / 1e9;
    double wall = (System.currentTimeMillis() - askedAtMillis) / 1e3;
    return Math.max(monotonic, wall);
  }

  private static int number(String json, String name) {
    Matcher matcher = NUMBER.matcher(json);
    while (matcher.find()) {
      if (matcher.group(1).equals(name)) {
        return Integer.parseInt(matcher.group(2));
      }
    }
    return 0;
  }

  private static String encoded(String value) {
    return URLEncoder.encode(value, StandardCharsets.UTF_8);
  }
}
