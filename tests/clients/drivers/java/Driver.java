import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import tokenkeeper.KeeperMpConfig;
import tokenkeeper.TokenKeeper;

/** Calls WeChat as WxJava does for each line on standard input, and prints the errcode, 0 where all was well. */
public final class Driver {
  private static final HttpClient CLIENT = HttpClient.newHttpClient();
  private static final Pattern ERRCODE = Pattern.compile("\"errcode\": (\\d+)");

  public static void main(String[] arguments) throws Exception {
    KeeperMpConfig config = new KeeperMpConfig(new TokenKeeper(arguments[0], arguments[1], arguments[2]));
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
    while (lines.readLine() != null) {
      try {
        System.out.println(execute(config, arguments[3], false));
      } catch (IllegalStateException error) {
        System.out.println(error.getMessage());
      }
    }
  }

  /** In the order of BaseWxMpServiceImpl.executeInternal. */
  private static int execute(KeeperMpConfig config, String wechat, boolean isRetry) throws Exception {
    if (config.isAccessTokenExpired()) {
      throw new IllegalStateException("WxJava would fetch a token itself");
    }
    String token = config.getAccessToken();
    URI uri = URI.create(wechat + "/cgi-bin/get_api_domain_ip?access_token=" + token);
    String body = CLIENT.send(HttpRequest.newBuilder(uri).build(), HttpResponse.BodyHandlers.ofString()).body();
    Matcher errcode = ERRCODE.matcher(body);
    if (!errcode.find()) {
      return 0;
    }
    if (config.getAccessToken().equals(token)) {
      config.expireAccessToken();
    }
    return isRetry ? Integer.parseInt(errcode.group(1)) : execute(config, wechat, true);
  }
}
