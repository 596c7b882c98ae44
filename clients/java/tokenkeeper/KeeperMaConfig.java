// 小程序 with WxJava 4.7; see TokenKeeper.java for its use, and for what was checked.
package tokenkeeper;

import cn.binarywang.wx.miniapp.config.impl.WxMaDefaultConfigImpl;

/** WxJava's configuration, with the keeper's token. */
public class KeeperMaConfig extends WxMaDefaultConfigImpl {
  private final transient TokenKeeper keeper;

  public KeeperMaConfig(TokenKeeper keeper) {
    this.keeper = keeper;
    setAppid(keeper.appId());
  }

  @Override
  public String getAccessToken() {
    return keeper.token();
  }

  @Override
  public boolean isAccessTokenExpired() {
    return false; // getAccessToken looks after that
  }

  /** WxJava calls this where WeChat refused the current token, and then tries once more. */
  @Override
  public void expireAccessToken() {
    try {
      keeper.reportCurrent();
    } catch (IllegalStateException error) {
      // What WeChat returned is what the caller has to see.
    }
  }
}
