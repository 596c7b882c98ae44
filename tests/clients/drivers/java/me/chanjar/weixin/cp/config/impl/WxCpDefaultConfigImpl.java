package me.chanjar.weixin.cp.config.impl;

/** What the keeper's configuration overrides of WxJava 4.7. */
public class WxCpDefaultConfigImpl {
  public String getAccessToken() {
    return null;
  }

  public boolean isAccessTokenExpired() {
    return true;
  }

  public void expireAccessToken() {}

  public void setCorpId(String id) {}
}
