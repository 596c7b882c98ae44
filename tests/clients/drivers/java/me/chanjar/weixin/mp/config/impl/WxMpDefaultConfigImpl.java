package me.chanjar.weixin.mp.config.impl;

/** What the keeper's configuration overrides of WxJava 4.7. */
public class WxMpDefaultConfigImpl {
  public String getAccessToken() {
    return null;
  }

  public boolean isAccessTokenExpired() {
    return true;
  }

  public void expireAccessToken() {}

  public void setAppId(String id) {}
}
