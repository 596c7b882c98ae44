"""Whatever is sent: a clean 4xx or WeChat's error, nothing of it echoed, and no 5xx but the honest 503."""

import base64
import json
from urllib.parse import urlencode

import pytest
from werkzeug.wrappers import Response

from tests.integration.front import Front, front
from tests.support.world import APPID, SECRET

MARK = "Zq7-marked-Zq7"
"""Stands in whatever is sent, and in no reply."""

REVOKED = "wtk_" + "A" * 43


def assert_clean(response: Response) -> None:
    """A refusal in the words of the API, of WeChat or of the gateway."""
    body = json.loads(response.data)
    assert (
        (response.status_code == 404 and body == {"message": "Not Found"})
        or (
            response.status_code in (400, 404)
            and body["code"] in ("invalid_request", "unknown_account", "unknown_credential")
        )
        or (response.status_code == 200 and body["errcode"] not in (0, -1))
    ), (response.status_code, body)
    assert MARK not in response.get_data(as_text=True) + str(response.headers)
    assert "access_token" not in body
    assert SECRET not in response.get_data(as_text=True)


# --- paths


@pytest.mark.parametrize(
    "path",
    [
        "/v1/accounts/",
        "/v1/accounts/main/",
        "/v1/accounts//main",
        "/V1/accounts",
        "/v1/Accounts/main",
        "/v1/accounts/MAIN",
        "/v1/accounts/main/Access-Token",
        "/v1/accounts/../accounts/main",
        "/v1/accounts/./main",
        "/v1/accounts/..%2Fother/access-token",
        "/v1/accounts/main%2F..%2Fother/access-token",
        "/v1/accounts/main%2Faccess-token",
        "/v1/accounts/main%252Faccess-token",
        "/v1/accounts/main%00/access-token",
        "/v1/accounts/main%0d%0aSet-Cookie:%20a=b/access-token",
        "/v1/accounts/%6Dain;x=1/access-token",
        "/v1/accounts/main /access-token",
        "/v1/accounts/main%20/access-token",
        "/v1/accounts/main%0A/access-token",
        "/v1/accounts/ma%C4%B1n/access-token",
        "/v1/accounts/%EF%BD%8Dain/access-token",
        "/v1/accounts/%FF%FE/access-token",
        f"/v1/accounts/{MARK}/access-token",
        f"/v1/accounts/{'a' * 65}/access-token",
        "/v1/accounts/-main/access-token",
        "/v1/accounts/$default/access-token",
        "/v1/accounts/{account}/access-token",
        "/v1/accounts/main/tickets/JSAPI",
        "/v1/accounts/main/tickets/access_token",
        f"/v1/accounts/main/tickets/{MARK}",
        "/v1/accounts/main/tickets/jsapi%2F..",
        "/cgi-bin/Token",
        "/cgi-bin/token/",
        "/cgi-bin//token",
        "/cgi-bin/ticket/../token",
        "/cgi-bin/token%2F",
        "/cgi-bin/get_api_domain_ip",
        "/",
    ],
)
def test_a_path_that_is_nearly_one_of_ours_is_not_found(path: str) -> None:
    assert_clean(front().client.get(path))
    assert_clean(front().client.get(f"{path}?{urlencode(front().query(appid=MARK))}"))


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
def test_a_method_that_is_none_of_ours_is_not_found(method: str) -> None:
    for path in ("/v1/accounts/main/access-token", "/cgi-bin/token"):
        assert_clean(front().client.open(path, method=method))


def test_a_method_cannot_be_overridden_by_a_header() -> None:
    headers = {"X-HTTP-Method-Override": "POST", "X-Original-URL": "/v1/accounts", "X-Forwarded-Path": "/v1/accounts"}
    assert_clean(front().client.get("/v1/accounts/main/access-token/reports", headers=headers))
    assert_clean(front().client.get(f"/v1/accounts/{MARK}", headers=headers))


# --- bodies

DEEP = "[" * 100_000
BODIES: dict[str, tuple[bytes, str]] = {
    "oversized": (b'{"grant_type":"client_credential","x":"' + MARK.encode() * 100_000 + b'"}', "application/json"),
    "an oversized form": (b"grant_type=client_credential&x=" + MARK.encode() * 100_000, "application/x-www-form-urlencoded"),
    "deep": (DEEP.encode(), "application/json"),
    "deep, of the size allowed": (b"[" * 8000, "application/json"),
    "deep objects": (b'{"a":' * 1600, "application/json"),
    "a long number": (b'{"access_token":' + b"1" * 8000 + b"}", "application/json"),
    "numbers that are none": (b'{"access_token":NaN,"fingerprint":Infinity,"appid":-Infinity}', "application/json"),
    "UTF-16": (json.dumps({"access_token": MARK}).encode("utf-16"), "application/json; charset=utf-16"),
    "UTF-16, undeclared": (json.dumps({"appid": MARK}).encode("utf-16"), "application/octet-stream"),
    "no UTF-8": (b'{"access_token":"\xff\xfe\xc0\xaf"}', "application/octet-stream"),
    "NUL": (b'{"access_token":"\\u0000\x00"}', "application/json"),
    "NULs": (b"\x00" * 100, "application/octet-stream"),
    "half a surrogate": (b'{"access_token":"\\ud800","appid":"\\udfff","secret":"\\ud800"}', "application/json"),
    "lists": (json.dumps({"access_token": [MARK], "appid": [APPID], "secret": {"$ne": ""}}).encode(), "application/json"),
    "null": (b"null", "application/json"),
    "a text": (json.dumps(MARK).encode(), "application/json"),
    "true": (b"true", "application/json"),
    "twice the same name": (b'{"access_token":1,"access_token":{}}', "application/json"),
    "XML": (f'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;{MARK}</x>'.encode(), "application/xml"),
    "multipart": (f'--{MARK}\r\nContent-Disposition: form-data; name="appid"\r\n\r\n1'.encode(), f"multipart/form-data; boundary={MARK}"),
    "forms in forms": (b"--b\n" + b"Content-Type:message/\n\n" * 355, "multipart/form-data; boundary=b"),
    "many fields": ("&".join(f"a{i}=1" for i in range(900)).encode(), "application/x-www-form-urlencoded"),
    "gzip": (b"\x1f\x8b\x08" + MARK.encode(), "application/json"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "content_type"), BODIES.values(), ids=BODIES)
def test_a_body_that_is_no_request_is_refused(body: bytes, content_type: str) -> None:
    for path in ("/v1/accounts/main/access-token/reports", "/cgi-bin/token", "/cgi-bin/stable_token"):
        assert_clean(front().client.post(path, data=body, content_type=content_type))


@pytest.mark.parametrize(
    "body", ["!", "=", "A", "%%%%", "é" * 10, "\ud800", base64.b64encode(b"\xff\xfe").decode(), "A" * 10_000]
)
@pytest.mark.parametrize("path", ["/v1/accounts/{account}/access-token/reports", "/cgi-bin/stable_token"])
def test_base64_that_is_none_is_refused(path: str, body: str) -> None:
    # Given an event such as the gateway itself would not make
    event = {
        "routeKey": f"POST {path}",
        "pathParameters": {"account": "main"},
        "body": body,
        "isBase64Encoded": True,
        "requestContext": {"requestId": "x"},
    }
    reply = front()._handle(event)
    assert_clean(Response(reply["body"], reply["statusCode"], reply["headers"]))


# --- queries and headers


def test_a_parameter_that_comes_twice_is_none_of_both() -> None:
    # Given parameters that the gateway joins by a comma
    query = urlencode(front().query())
    for again in (f"secret={front().key}", f"appid={MARK}", "grant_type=client_credential", "appid[]=x&appid=y"):
        assert_clean(front().client.get(f"/cgi-bin/token?{query}&{again}"))
    assert_clean(front().client.get("/v1/accounts?limit=1&limit=2"))
    assert_clean(front().client.get(f"/v1/accounts?next=main&next={MARK}"))
    assert_clean(front().client.get("/v1/accounts/main/jsapi-signature?url=https://a/%0d%0aX:1&url=https://b/"))


@pytest.mark.parametrize(
    "query",
    ["limit=", "limit=0", "limit=-1", "limit=51", "limit=1e1", "limit=%D9%A1", "limit=%C2%B2", "limit=9" + "9" * 5000, f"limit={MARK}",
     "next=", "next=%00", "next=../main", "next=MAIN", f"next={MARK}", "next=a%0A", "limit[]=1&limit=x"],
)  # fmt: skip
def test_a_page_that_is_none_is_refused(query: str) -> None:
    assert_clean(front().client.get(f"/v1/accounts?{query}"))


@pytest.mark.parametrize(
    "arrays", ["appid[]=a&secret[]=b&grant_type[]=client_credential", "grant_type[0]=client_credential"]
)
def test_arrays_are_no_parameters(arrays: str) -> None:
    assert_clean(front().client.get(f"/cgi-bin/token?{arrays}"))
    assert_clean(front().client.post("/cgi-bin/token", data=arrays, content_type="application/x-www-form-urlencoded"))


def test_headers_change_nothing() -> None:
    headers = {
        "X-Forwarded-For": MARK,
        "X-Amzn-Request-Id": MARK,
        "Authorization": f"Bearer {MARK}",
        "Cookie": f"secret={MARK}",
        "Host": f"{MARK}.example",
        "Accept": MARK,
        "Origin": f"https://{MARK}",
        "Content-Encoding": MARK,
    }
    assert_clean(front().client.get("/v1/accounts/none/access-token", headers=headers))
    assert_clean(front().client.get(f"/cgi-bin/token?{urlencode(front().query(secret=REVOKED))}", headers=headers))
    right = front().client.get(f"/cgi-bin/token?{urlencode(front().query())}", headers=headers)
    assert right.json is not None
    assert right.json["access_token"]
    assert MARK not in str(right.headers)


# --- keys


def test_guessed_keys_and_others_accounts_are_refused() -> None:
    key = front().key
    guesses = [
        REVOKED,
        key[:-1],
        key + "A",
        key + "\n",
        " " + key,
        key.upper(),
        key.swapcase(),
        key[4:],
        "wtk_",
        key + "\x00",
        "*",
        SECRET,
    ]
    guesses += [key[:i] + ("A" if key[i] != "A" else "B") + key[i + 1 :] for i in range(4, len(key))]
    for guess in guesses:
        assert_clean(front().client.get(f"/cgi-bin/token?{urlencode(front().query(secret=guess))}"))
    for appid in ("wx000000000000other", "main", "*", "wx*", "", "../main", APPID.upper(), APPID + "\n", MARK):
        assert_clean(front().client.get(f"/cgi-bin/token?{urlencode(front().query(appid=appid))}"))


def test_a_revoked_key_and_guessed_keys_are_seen_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    mine = Front()
    mine.world.revoke(mine.key)
    refused = mine.client.get(f"/cgi-bin/token?{urlencode(mine.query())}", environ_base={"REMOTE_ADDR": "198.51.100.9"})
    assert refused.json is not None
    assert refused.json["errcode"] == 40125
    # Then there is a line with the reason and the address, and without the key
    (line,) = [record for record in caplog.records if record.message == "refused"]
    assert (line.errcode, line.source_ip, line.route) == (40125, "198.51.100.9", "GET /cgi-bin/token")  # type: ignore[attr-defined]
    assert mine.key not in str(vars(line))
