package cn.binarywang.wx.miniapp.config.impl;

/** What the keeper's configuration overrides of WxJava 4.7. */
public class WxMaDefaultConfigImpl {
  public String getAccessToken() {
    return null;
  }

  public boolean isAccessTokenExpired() {
    return true;
  }

  public void expireAccessToken() {}

  public void setAppid(String id) {}
}
