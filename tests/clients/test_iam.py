"""The client with an AWS identity: signed calls of `/v1`."""

import hashlib
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.session import Session

from tests.clients.stub_keeper import APPID, FakeTime, StubKeeper
from wechat_token_keeper import (
    AccessDeniedError,
    Keeper,
    KeeperError,
    SetupError,
    UnavailableError,
    UnknownCredentialError,
)

ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = "AKIDEXAMPLE", "a-secret-access-key", "a-session-token"


@pytest.fixture
def keeper(stub: StubKeeper, time: FakeTime) -> Keeper:
    session = Session()
    session.set_credentials(ACCESS_KEY, SECRET_KEY, SESSION_TOKEN)
    session.set_config_variable("region", "eu-west-1")
    return Keeper.iam(stub.url, "main", session=session, clock=time.clock)


def test_every_call_is_signed(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    # Given each kind of call
    assert keeper.token() == "token-1"
    time.pass_by(61)
    assert keeper.report("token-1") == "token-1"
    assert keeper.ticket("wx_card") == "ticket-1"
    assert keeper.jsapi_signature("https://a.example/?a=1&b=%20#top")["signature"] == "s"
    assert keeper.jsapi_signature("https://a.example/", ticket_type="agent_config")["appId"] == APPID
    main = "/v1/accounts/main"
    assert stub.paths() == [
        f"{main}/access-token",
        f"{main}/access-token/reports",
        f"{main}/tickets/wx_card",
        f"{main}/jsapi-signature",
        f"{main}/jsapi-signature",
    ]
    # Then each carries the signature that AWS would compute for what arrived
    for call in stub.calls:
        url = f"{stub.url}{call.path}" + ("?" + "&".join(_quoted(call.query)) if call.query else "")
        names = call.headers["authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
        request = AWSRequest(call.method, url, headers={n: call.headers[n] for n in names}, data=call.body)
        signer = SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY, SESSION_TOKEN), "execute-api", "eu-west-1")
        request.context["timestamp"] = call.headers["x-amz-date"]
        expected = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
        assert call.headers["authorization"].endswith(f"Signature={expected}")
        assert call.headers["x-amz-security-token"] == SESSION_TOKEN
    # And a page's address arrives whole
    assert stub.calls[3].query == {"url": "https://a.example/?a=1&b=%20"}
    assert stub.calls[4].query == {"url": "https://a.example/", "type": "agent_config"}


def test_a_report_names_the_token_by_its_fingerprint(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    token = keeper.token()
    time.pass_by(61)
    stub.successor = "token-2"
    assert keeper.report(token) == "token-2"
    assert stub.reports()[0].json == {"fingerprint": hashlib.sha256(b"token-1").hexdigest()[:16]}


@pytest.mark.parametrize(
    ("status", "problem", "headers", "kind", "says"),
    [
        (404, {"code": "unknown_account"}, {}, UnknownCredentialError, "of the account main"),
        (404, {"code": "unknown_credential"}, {}, UnknownCredentialError, "of the account main"),
        (429, {"code": "too_many_reports"}, {"Retry-After": "7"}, UnavailableError, "HTTP 429 (too_many_reports)"),
        (429, {"message": "Too Many Requests"}, {}, UnavailableError, "HTTP 429"),
        (400, {"code": "invalid_request", "detail": "limit must be a number"}, {}, SetupError, "limit must be"),
        (500, {"message": "Internal Server Error"}, {}, UnavailableError, "HTTP 500"),
        (403, {"message": "Forbidden"}, {}, AccessDeniedError, "execute-api:Invoke on …/v1/accounts/main/"),
        (
            503,
            {
                "code": "no_valid_value",
                "cause": {"class": "configuration", "errcode": 40164, "remedy": "Add 192.0.2.1."},
            },
            {"Retry-After": "9"},
            UnavailableError,
            "configuration, errcode 40164. Add 192.0.2.1.",
        ),
    ],
)
def test_an_error_says_what_to_do(
    keeper: Keeper,
    stub: StubKeeper,
    status: int,
    problem: dict[str, Any],
    headers: dict[str, str],
    kind: type[KeeperError],
    says: str,
) -> None:
    time_of_response = format_datetime(datetime.fromtimestamp(1_790_000_010, UTC), usegmt=True)
    stub.failure = (status, problem, {"Date": time_of_response, **headers})
    with pytest.raises(KeeperError) as failed:
        keeper.token()
    assert type(failed.value) is kind
    assert says in str(failed.value)
    if isinstance(failed.value, UnavailableError):
        assert failed.value.retry_after == int(headers.get("Retry-After", 1))


def test_a_wrong_clock_is_named_where_the_signature_is_refused(
    keeper: Keeper, stub: StubKeeper, time: FakeTime
) -> None:
    # Given a machine whose clock is ten minutes fast
    time.wall += 600
    date = format_datetime(datetime.fromtimestamp(1_790_000_000, UTC), usegmt=True)
    stub.failure = (403, {"message": "Signature expired"}, {"Date": date})
    with pytest.raises(AccessDeniedError, match="clock is wrong by 600 s"):
        keeper.token()


def test_the_region_is_read_from_the_address() -> None:
    session = Session()
    for url, region in (
        ("https://a1b2.execute-api.ap-southeast-1.amazonaws.com", "ap-southeast-1"),
        ("https://a1b2.execute-api.cn-north-1.amazonaws.com.cn/", "cn-north-1"),
    ):
        assert vars(Keeper.iam(url, "main", session=session)._source)["_region"] == region
    session.set_config_variable("region", None)
    with pytest.raises(SetupError, match="AWS_REGION"):
        Keeper.iam("https://tokens.example.com", "main", session=session)


def test_without_credentials_the_error_says_so(stub: StubKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    session.set_config_variable("region", "eu-west-1")
    monkeypatch.setattr(session, "get_credentials", lambda: None)
    with pytest.raises(SetupError, match="no AWS credentials"):
        Keeper.iam(stub.url, "main", session=session).token()
    assert stub.calls == []


def _quoted(query: dict[str, str]) -> list[str]:
    from urllib.parse import quote

    return [f"{name}={quote(value, safe='')}" for name, value in query.items()]
