"""Clients as others write them, unmodified except where they ask for the token, against `token-keeper local`.

Business calls go to the simulated WeChat, which returns them only where it accepts the token.
"""

from typing import TYPE_CHECKING, Any

import pytest
import requests
import wechatpy
import wechatpy.enterprise
import werobot.client

if TYPE_CHECKING:
    from tests.e2e.test_local import Local

APPID = "wx0123456789abcdef"
CORPID, CORP_SECRET = "ww0123456789abcdef", "a-secret-of-the-corp"

pytestmark = pytest.mark.xdist_group("program")


@pytest.fixture(scope="module")
def key(local: "Local") -> str:
    """The key of a consumer of the demo account and of a WeCom app."""
    local.open_corp_app(CORPID, CORP_SECRET)
    added = local.operate("accounts", "add", "crm", "--corpid", CORPID, stdin=CORP_SECRET)
    assert added.exit_code == 0, added.stderr
    local.wait_for(r"(renewed crm access_token)")
    added = local.operate("consumers", "add", "clients", "--accounts", "demo,crm")
    assert added.exit_code == 0, added.stderr
    return added.stdout.strip()


def test_wechatpy_gets_on_with_a_key_in_place_of_the_appsecret(local: "Local", key: str) -> None:
    # Given a client whose token comes from here; only the address is another
    class Client(wechatpy.WeChatClient):  # type: ignore[misc]
        API_BASE_URL = f"{local.wechat}/cgi-bin/"

        def fetch_access_token(self) -> Any:
            params = {"grant_type": "client_credential", "appid": self.appid, "secret": self.secret}
            return self._fetch_access_token(f"{local.api}/cgi-bin/token", params)

    client = Client(APPID, key)
    # Then WeChat accepts its calls
    assert client.get("get_api_domain_ip")["ip_list"]
    # And when its token dies in its memory, it gets the current one by itself
    client.session.set(client.access_token_key, "dead")
    assert client.get("get_api_domain_ip")["ip_list"]
    # And a wrong key is what it knows as a wrong AppSecret
    with pytest.raises(wechatpy.WeChatClientException) as refused:
        Client(APPID, key[:-3] + "AAA").get("get_api_domain_ip")
    assert refused.value.errcode == 40125


def test_wechatpy_for_wecom_works_with_a_key_for_a_secret(local: "Local", key: str) -> None:
    class Client(wechatpy.enterprise.WeChatClient):  # type: ignore[misc]
        API_BASE_URL = f"{local.wechat}/cgi-bin/"

        def fetch_access_token(self) -> Any:
            params = {"corpid": self.corp_id, "corpsecret": self.secret}
            return self._fetch_access_token(f"{local.api}/cgi-bin/gettoken", params)

    assert Client(CORPID, key).get("get_api_domain_ip")["ip_list"]


def test_werobot_gets_on_with_a_key_in_place_of_the_appsecret(local: "Local", key: str) -> None:
    class Client(werobot.client.Client):  # type: ignore[misc]
        def grant_token(self) -> Any:
            params = {"grant_type": "client_credential", "appid": self.appid, "secret": self.appsecret}
            return self.get(f"{local.api}/cgi-bin/token", params=params)

    client = Client({"APP_ID": APPID, "APP_SECRET": key})
    assert client.get(f"{local.wechat}/cgi-bin/get_api_domain_ip")["ip_list"]


def test_plain_http_as_a_php_or_java_team_sends_it(local: "Local", key: str) -> None:
    query = {"grant_type": "client_credential", "appid": APPID, "secret": key}
    token_url, stable_url = f"{local.api}/cgi-bin/token", f"{local.api}/cgi-bin/stable_token"
    java = {"Content-Type": "application/json;charset=UTF-8", "User-Agent": "Apache-HttpClient/5.3 (Java/17)"}
    for response in (
        requests.get(token_url, params=query, timeout=120),
        requests.post(token_url, data=query, timeout=120),
        requests.post(stable_url, json=query, headers=java, timeout=120),
        requests.post(
            stable_url, json={**query, "force_refresh": True}, headers={"Expect": "100-continue"}, timeout=30
        ),
    ):
        # Then each gets what WeChat would have returned: these fields and no other, and a token that works
        assert response.status_code == 200
        assert response.json().keys() == {"access_token", "expires_in"}
        token = response.json()["access_token"]
        assert local.accepts(token)
        # And with the token its ticket
        ask = {"access_token": token, "type": "jsapi"}
        ticket = requests.get(f"{local.api}/cgi-bin/ticket/getticket", params=ask, timeout=120).json()
        assert ticket["errcode"] == 0
        assert local.accepts(ticket["ticket"])
