"""wechat-token-keeper: the one place where a WeChat credential is fetched, kept and handed out."""
