"""What the return codes of WeChat and WeCom call for: the class of each, and what an operator is to do."""

import re

from token_keeper.model import FailureClass

IP_NOT_ALLOWED = {40164, 61004, 45035, 60020}
"""WeChat's and WeCom's codes for a caller whose address is not on the list; their message names the address."""

_TOKEN_REFUSED = {40001, 40014, 42001}
"""Codes for an access token that is no longer accepted. On a call without one it is the AppSecret that is refused."""

_CLASSES = {
    FailureClass.TRANSIENT: {-1, 45011, 45033},
    FailureClass.QUOTA: {45009, 48006},
    FailureClass.CONFIGURATION: IP_NOT_ALLOWED
    | _TOKEN_REFUSED
    | {40013, 40091, 40125, 40243, 48001, 48002, 48004, 50002, 50004, 50007, 61024},
    FailureClass.CONFIRMATION: {89501, 89503, 89506, 89507},
    FailureClass.DEFECT: {40002, 41001, 41002, 41004, 43002, 43003},
}
_CLASS_OF = {errcode: failure_class for failure_class, errcodes in _CLASSES.items() for errcode in errcodes}

_CLASS_REMEDIES = {
    FailureClass.TRANSIENT: "No action needed: it is retried automatically.",
    FailureClass.QUOTA: "The day's calls are used up. Find out who else fetches with this AppSecret; an administrator can "
    "clear the quota (10 times a month), or it is restored at midnight, Beijing time.",
    FailureClass.CREDENTIAL: "The token this call needs is no longer accepted; it is replaced automatically.",
    FailureClass.CONFIGURATION: "Correct the account's settings on WeChat's platform.",
    FailureClass.CONFIRMATION: "An administrator must confirm this IP address.",
    FailureClass.DEFECT: "WeChat did not understand the request: an internal error in token-keeper. Please report it.",
    FailureClass.UNKNOWN: "WeChat's documentation of return codes explains this code; quote the rid when asking WeChat.",
}

_PLATFORM = "公众号: 微信开发者平台 > 我的业务 > 基础信息"
_KEY_PLACES = f"{_PLATFORM} > 开发密钥; 小程序: 微信公众平台 > 管理 > 开发管理 > 开发设置"
_ADDRESS = "the address in WeChat's message"
_FIXED_ADDRESS = (
    "A Lambda's address changes: for a fixed one deploy with EgressMode=managed (a NAT gateway, about 36.50 USD a month) "
    "or EgressMode=instance (a small server, about 7 USD a month), and add the output EgressIp."
)
_REMEDIES = {
    40001: f"The AppSecret is not the one WeChat knows for this account. Copy it again ({_KEY_PLACES}) and run "
    "`token-keeper accounts set-secret`; it is tried at once.",
    40013: f"WeChat does not know this appid. Compare it ({_KEY_PLACES}) and correct the account's record.",
    40091: "This secret belongs to another corp. Compare corpid and secret (企业微信管理后台 > 应用管理) and correct the record.",
    40164: f"Add {_ADDRESS} to the IP whitelist ({_PLATFORM} > API IP 白名单; 小程序: 开发设置 > IP 白名单). {_FIXED_ADDRESS}",
    40243: "The AppSecret is frozen. Unfreeze it on the platform (it takes 10 minutes to take effect).",
    48001: "This account may not call this API. Check its certification and permissions on the platform.",
    50002: "WeChat has restricted this account. Sign in to the platform, read the notice there and resolve it.",
    60020: f"Add {_ADDRESS} to 企业可信IP of the app (企业微信管理后台 > 应用管理). {_FIXED_ADDRESS}",
    61024: "This appid is managed by a third-party platform, which must be the one to fetch its token.",
    89501: "WeChat asks an administrator to confirm this IP address: confirm the message in the administrator's WeChat.",
    89506: "An administrator refused this IP address twice: WeChat blocks it for 24 hours. It is tried again after that.",
    89507: "An administrator refused this IP address: WeChat blocks it for an hour. It is tried again after that.",
}
_LIKE = {40125: 40001, 61004: 40164, 45035: 40164, 48002: 48001, 48004: 48001, 50004: 50002, 50007: 50002, 89503: 89501}
"""Codes with the remedy of another."""

_CORP_REMEDIES = _REMEDIES | {
    40001: "The secret is not that of an app of this corp. Copy it again (企业微信管理后台 > 应用管理 > the app > Secret) and run "
    "`token-keeper accounts set-secret`; it is tried at once.",
    40013: "WeCom does not know this corpid. Compare it with 企业微信管理后台 > 我的企业 > 企业信息 and correct the account's record.",
}


def meaning(errcode: int, errmsg: str, sent: str) -> tuple[FailureClass, str]:
    """The class of a refusal, and its remedy, which names the address to be allowed where the message holds it.

    `sent`: the field that the refused call was authorised by: `secret`, `corpsecret` or `access_token`.
    """
    if sent == "access_token" and errcode in _TOKEN_REFUSED:
        return FailureClass.CREDENTIAL, _CLASS_REMEDIES[FailureClass.CREDENTIAL]
    failure_class = _CLASS_OF.get(errcode, FailureClass.UNKNOWN)
    remedies = _CORP_REMEDIES if sent == "corpsecret" else _REMEDIES
    remedy = remedies.get(_LIKE.get(errcode, errcode), _CLASS_REMEDIES[failure_class])
    found = re.search(r"\b\d{1,3}(?:\.\d{1,3}){3}\b", errmsg)
    return failure_class, remedy.replace(_ADDRESS, found[0]) if found else remedy
