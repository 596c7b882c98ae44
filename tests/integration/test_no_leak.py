"""No secret, token, ticket or key leaves through any channel but the API's reply to a permitted reader.

Every path of both functions is driven with marked values while everything they emit is recorded, at DEBUG: log records with all
their fields, stdout and stderr, warnings, summaries, events, health, problems, what Lambda prints of an
exception, and what is sent to AWS.
"""

import json
import logging
import re
import socketserver
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ParamValidationError
from werkzeug import Request, Response

import api
from infra.local.http_server import Server
from infra.local.simulated_wechat import Fault
from infra.sam_template import translate
from tests.simulation.memory_aws import MemoryAws
from tests.support.leaks import QUIET, Said, forms, listening, spellings
from tests.support.world import APPID, Clock, World, gateway_event
from token_keeper.model import fingerprint, rfc3339
from token_keeper.notify import messages
from token_keeper.notify.messages import News
from token_keeper.refresh import wechat

SECRET = "S3cret/+\"\\&=%41<?>'#of-main"
"""Of all the letters that a secret may have, those that look different in an URL, in JSON, in HTML or in Python."""

STABLE_SECRET, CORP_SECRET = SECRET.replace("main", "stable"), SECRET.replace("main", "corp")
TOKEN = "t0ken/+\"\\&=%41<?>'#minted"
TICKET = TOKEN.replace("t0ken", "t1cket")
GUESSED_KEY = "wtk_" + "Gue55ed_-k" * 4 + "key"
CORPID = "ww0123456789abcdef"
STABLE_APPID = "wx00000000000stable"

VALUES = {TOKEN, TICKET, "simulated_token_", "simulated_ticket_"}
VALUE_FIELDS = ("access_token", "ticket")


class Rig:
    """A world that is listened to. `keys`: of a consumer that may report, and of one that may not."""

    def __init__(self, said: Said) -> None:
        clock = Clock()
        self.aws = MemoryAws(clock)
        self.world, self.said = World(self.aws.client, clock=clock), said
        world = self.world
        world.before_aws = self._sent
        self.broken: Callable[[str, bytes], None] = lambda operation, body: None
        self.keys = [
            world.add_consumer("staff", ["*"], may_report=True),
            world.add_consumer("staging", ["main", "crm"]),
        ]
        self.never = {SECRET, STABLE_SECRET, CORP_SECRET, GUESSED_KEY, *self.keys}

    def _sent(self, operation: str, body: bytes) -> None:
        channel = {"lambda.Invoke": "invocations", "eventbridge.PutEvents": "events"}.get(operation, "aws")
        self.said.add(channel, body.decode())
        self.broken(operation, body)

    def leaks(self) -> list[str]:
        """What was found: values anywhere but in the table, secrets and keys nowhere at all."""
        outside = Said()
        outside.by_channel = {name: said for name, said in self.said.by_channel.items() if name != "aws"}
        return outside.found(VALUES) + self.said.found(self.never)

    def enrol(self, **extra: Any) -> None:
        """Keep an account of each kind."""
        self.parameter("main", appid=APPID, secret=SECRET, tickets=["jsapi", "wx_card"], **extra)
        self.parameter("stable", appid=STABLE_APPID, secret=STABLE_SECRET, endpoint="stable_token")
        self.parameter("crm", corpid=CORPID, secret=CORP_SECRET, tickets=["jsapi", "agent_config"])

    def parameter(self, name: str, value: str | None = None, **record: Any) -> None:
        """Write a parameter, and deliver its event."""
        if "corpid" in record:
            self.world.wechat.add_corp_app(record["corpid"], record["secret"])
        elif record:
            self.world.wechat.add_app(record["appid"], record["secret"])
        path = f"{self.world.environment['ACCOUNTS_PATH']}/{name}"
        recorder, self.world.before_aws = self.world.before_aws, None  # it is an operator who sends this
        self.world.ssm.put_parameter(Name=path, Value=value or json.dumps(record), Type="SecureString", Overwrite=True)
        self.world.before_aws = recorder
        self.wake({"source": "aws.ssm", "detail": {"name": path, "operation": "Update"}})

    def wake(self, event: Any) -> None:
        """Invoke RefreshFunction."""
        with self._hearing_exceptions():
            self.said.add("summaries", json.dumps(self.world.invoke(event)))

    def ask(
        self,
        path: str,
        body: str | bytes | None = None,
        method: str | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """Make a request of ApiFunction; all of the response is recorded except a value where a reply to a reader has it."""
        event = gateway_event(path, body, method, content_type)
        with self._hearing_exceptions(), self.world.internet():
            response = self.world.api_instance()(event, None)
            reply: dict[str, Any] = json.loads(response["body"])
            shown = {k: v for k, v in reply.items() if response["statusCode"] != 200 or k not in VALUE_FIELDS}
            self.said.add("replies", f"{response['statusCode']} {response['headers']} {json.dumps(shown)} ")
            self.said.add("replies", json.dumps(shown, ensure_ascii=False))
            for field in VALUE_FIELDS:
                assert reply.get(field) not in self.never
            return reply
        return {}

    @contextmanager
    def _hearing_exceptions(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - what Lambda would print of it
            self.said.raised(error)

    def tokens(self) -> dict[str, str]:
        """The accounts' tokens, as a reader knows them."""
        names = ("main", "stable", "crm")
        return {name: self.ask(f"/v1/accounts/{name}/access-token").get("access_token", TOKEN) for name in names}

    def all_calls(self) -> None:
        """Every route with what belongs there, and with what does not."""
        self.ask("/v1/accounts")
        self.ask("/v1/accounts?limit=1&next=" + quote(SECRET))
        self.ask("/v1/accounts?limit=" + quote(TOKEN))
        for account, token in self.tokens().items():
            self.ask(f"/v1/accounts/{account}")
            for ticket in ("jsapi", "wx_card", "agent_config", quote(SECRET, safe="")):
                self.ask(f"/v1/accounts/{account}/tickets/{ticket}")
            self.ask(f"/v1/accounts/{account}/jsapi-signature?url=https://example.com/")
            self.ask(f"/v1/accounts/{account}/jsapi-signature?url={quote(TOKEN)}")
            for report in ({"access_token": token}, {"fingerprint": fingerprint(token)}, {"access_token": TOKEN}):
                self.ask(f"/v1/accounts/{account}/access-token/reports", json.dumps(report))
            for nonsense in (f'{{"access_token": "{token}"', json.dumps([token]), json.dumps({token: token})):
                self.ask(f"/v1/accounts/{account}/access-token/reports", nonsense)
            for ticket in ("jsapi", "wx_card", TOKEN):
                query = urlencode({"access_token": token, "type": ticket})
                self.ask(f"/cgi-bin/ticket/getticket?{query}")
        self.ask(f"/v1/accounts/{quote(SECRET, safe='')}/access-token")
        for key in (*self.keys, GUESSED_KEY, SECRET, TOKEN):
            for appid in (APPID, STABLE_APPID, SECRET):
                asked = {"grant_type": "client_credential", "appid": appid, "secret": key}
                self.ask(f"/cgi-bin/token?{urlencode(asked)}")
                self.ask("/cgi-bin/token", urlencode(asked), content_type="application/x-www-form-urlencoded")
                self.ask("/cgi-bin/stable_token", json.dumps(asked | {"force_refresh": True}))
                self.ask("/cgi-bin/stable_token", json.dumps(asked)[:-1])
                self.ask(f"/cgi-bin/token?{urlencode(asked | {'grant_type': key})}")
            self.ask(f"/cgi-bin/gettoken?{urlencode({'corpid': CORPID, 'corpsecret': key})}")
            self.ask(f"/cgi-bin/gettoken?{urlencode({'corpid': key, 'corpsecret': key})}")
            self.ask(f"/cgi-bin/ticket/getticket?{urlencode({'access_token': key, 'type': 'jsapi'})}")

    def all_wakes(self) -> None:
        """Every event of RefreshFunction, and what is none."""
        for event in (
            {"wake": "tick"},
            {"detail-type": "Scheduled Event"},
            {"wake": "guard"},
            {"wake": SECRET},
            {"secret": SECRET, "rotate": TOKEN},
            {"renew": {"account": 1, "credential": TOKEN}},
        ):
            self.wake(event)
        for account, token in self.tokens().items():
            for credential in ("access_token", "jsapi", "none"):
                self.wake({"renew": {"account": account, "credential": credential}})
            self.wake({"renew": {"account": account, "credential": "access_token", "rotate": True}})
            self.wake({"verify": {"account": account, "fingerprint": fingerprint(token)}})


def is_news(entry: dict[str, Any]) -> bool:
    """Whether people get the event, by the rule of the template."""
    return entry["DetailType"] in NEWS


NEWS = set(translate()["Resources"]["NotifyRule"]["Properties"]["EventPattern"]["detail-type"])


@pytest.fixture
def rig() -> Iterator[Rig]:
    with listening() as said:
        made = Rig(said)
        yield made
        sent = [entry for entry in made.world.sent if is_news(entry)]
        if news := [News(entry["DetailType"], rfc3339(entry["Time"]), entry["Detail"]) for entry in sent]:
            said.add("messages", messages.text(news))
            said.add("messages", messages.subject(news))
        said.add("aws", json.dumps(list(made.aws.items.values())))
    assert made.leaks() == []
    assert sum(map(len, said.by_channel.values())) > 50, "nothing was recorded"


# --- the search itself


@pytest.mark.parametrize("form", sorted(forms(SECRET)))
def test_the_search_finds_a_marker_in_any_form(form: str) -> None:
    said = Said()
    said.add("log", f"… {form} …")
    assert said.found([SECRET])


@pytest.mark.parametrize("before", ["", "x", "xy", "xyz"])
def test_the_search_finds_a_marker_in_every_form_of_the_gateway(before: str) -> None:
    said = Said()
    said.add("log", b64encode(f"{before}{SECRET}&grant_type=client_credential".encode()).decode())
    assert said.found([SECRET])


def test_the_search_records_every_channel() -> None:
    with listening() as said:
        logging.getLogger("refresh").debug("…", extra={"field": {"in": SECRET}})
        logging.getLogger("api.compatible").debug("%s", STABLE_SECRET)
        try:
            raise ValueError(CORP_SECRET)
        except ValueError:
            logging.getLogger("other").exception("failed")
        sys.stdout.write(TOKEN)
        sys.stderr.write(TICKET)
    assert {"log", "exceptions", "stdout", "stderr"} <= {
        each.partition(":")[0] for each in said.found([SECRET, STABLE_SECRET, CORP_SECRET, TOKEN, TICKET])
    }
    for marker in (SECRET, STABLE_SECRET, CORP_SECRET, TOKEN, TICKET):
        assert said.found([marker])


def test_an_adapter_that_lets_an_exception_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an adapter that turns a broken connection into an exception with urllib3's own text
    monkeypatch.setattr(wechat, "_transport_failure", lambda error: wechat._NoResponseError(str(error)))
    with listening() as said:
        rig = Rig(said)
        rig.world.wechat.fail("/cgi-bin/gettoken", *[Fault.slow()] * 3)
        rig.enrol()
        rig.wake({"wake": "guard"})
        rig.ask("/v1/accounts/crm")
    # Then the search finds the secret where it went
    channels = {each.partition(":")[0] for each in rig.leaks()}
    assert {"log", "summaries", "replies", "stdout"} <= channels


def test_an_exception_that_is_not_handled_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def let_out(_: Any, account: Any, **__: Any) -> None:
        raise ValueError(f"{TOKEN}?secret={account.secret}")

    # Given an adapter that lets an exception out, and a changed record, whose secret is checked
    with listening() as said:
        rig = Rig(said)
        rig.enrol()
        monkeypatch.setattr(wechat.WeChat, "fetch_token", let_out)
        rig.parameter("main", appid=APPID, secret=SECRET, tickets=["jsapi"])
    assert any(each.startswith("exceptions: t0ken") for each in rig.leaks())


# --- the paths


def test_all_is_well(rig: Rig) -> None:
    rig.enrol()
    rig.all_calls()
    rig.all_wakes()
    rig.world.clock.sleep(7200)
    rig.all_wakes()
    rig.world.clock.sleep(60)
    rig.all_calls()
    # Then all that should be recorded was
    assert {"log", "summaries", "replies", "invocations", "aws", "events"} <= rig.said.by_channel.keys()


RECORDS = {
    "broken JSON": json.dumps({"appid": APPID, "secret": SECRET})[:-1],
    "a text": json.dumps(SECRET),
    "a list": json.dumps([SECRET]),
    "a secret as a field's name": json.dumps({"appid": APPID, "secret": "x", SECRET: ""}),
    "a secret as appid": json.dumps({"appid": SECRET, "secret": SECRET}),
    "a secret as corpid": json.dumps({"corpid": SECRET, "secret": SECRET}),
    "a secret with a blank": json.dumps({"appid": APPID, "secret": SECRET + " "}),
    "a secret as endpoint": json.dumps({"appid": APPID, "secret": SECRET, "endpoint": SECRET}),
    "a secret as ticket": json.dumps({"appid": APPID, "secret": SECRET, "tickets": [SECRET]}),
    "a secret in lists": json.dumps({"appid": APPID, "secret": [SECRET], "tickets": {SECRET: SECRET}}),
    "nested too deep": "[" * 5000 + SECRET,
    "kept twice": json.dumps({"appid": APPID, "secret": SECRET}),
}


def test_records_that_cannot_be_used(rig: Rig) -> None:
    rig.enrol()
    for record in RECORDS.values():
        rig.parameter("other", record)
        rig.parameter("main", record)
        rig.ask("/v1/accounts")
        rig.ask("/v1/accounts/other/access-token")
    rig.wake({"wake": "tick"})


WECHATS_PATHS = {
    "main": ("/cgi-bin/token", SECRET),
    "main's check of a secret": ("/cgi-bin/stable_token", SECRET),
    "stable": ("/cgi-bin/stable_token", STABLE_SECRET),
    "crm": ("/cgi-bin/gettoken", CORP_SECRET),
    "main's tickets": ("/cgi-bin/ticket/getticket", TOKEN),
    "crm's jsapi": ("/cgi-bin/get_jsapi_ticket", TOKEN),
    "crm's agent_config": ("/cgi-bin/ticket/get", TOKEN),
    "a check": ("/cgi-bin/get_api_domain_ip", TOKEN),
}
ERRCODES = (-1, 45011, 45009, 40001, 42001, 40013, 40125, 40164, 60020, 89503, 40002, 99999)


def faults(secret: str, path: str) -> list[Fault]:
    """What may go wrong at WeChat; its words repeat what was sent, in any form."""
    echoes = [*sorted(spellings(secret)), f"GET {path}?secret={quote(secret, safe='')}&appid=x", f"'{secret}'" * 40]
    echo = "\n".join(echoes[:4])
    wrong = [Fault.error(errcode, f"invalid {echoes[i % len(echoes)]}") for i, errcode in enumerate(ERRCODES)]
    if path == "/cgi-bin/token":  # the masking is the same for all
        wrong += [Fault.error(40125, f"of {each}, hint") for each in echoes]
        wrong.append(Fault.oversized(70_000))
    shapes: list[Any] = [
        {"errcode": secret, "errmsg": echo},
        {"errcode": 40001, "errmsg": {"secret": secret}},
        {"errcode": 40001, "errmsg": [secret, {secret: secret}]},
        {"access_token": {"is": TOKEN}, "ticket": [TICKET], "expires_in": 7200},
        {"access_token": TOKEN, "ticket": TICKET, "ip_list": TOKEN, "expires_in": TOKEN},
        {"access_token": TOKEN + " ", "ticket": TICKET + "é", "expires_in": 7200},
        {"access_token": TOKEN, "ticket": TICKET, "expires_in": -1},
        [TOKEN, TICKET],
        echo,
    ]
    return [
        *wrong,
        *(Fault.malformed(json.dumps(shape).encode()) for shape in shapes),
        Fault.malformed(f'{{"access_token":"{TOKEN}","ticket":"{TICKET}","expires_in":'.encode()),
        Fault.malformed(b"\xff" + TOKEN.encode()),
        Fault.http(502, echo.encode(), carried_out=True),
        Fault.http(500, json.dumps({"access_token": TOKEN, "ticket": TICKET, "expires_in": 7200}).encode()),
        Fault.redirect(f"https://elsewhere.invalid/?secret={quote(secret)}"),
        Fault.truncated(60),
        Fault.drop_after(),
        Fault.drop_before(),
        Fault.slow(),
    ]


@pytest.mark.parametrize(("path", "secret"), WECHATS_PATHS.values(), ids=WECHATS_PATHS)
def test_whatever_wechat_responds(rig: Rig, path: str, secret: str) -> None:
    if secret == TOKEN:
        for fetched_at in ("/cgi-bin/token", "/cgi-bin/stable_token", "/cgi-bin/gettoken"):
            rig.world.wechat.fail(fetched_at, *responses("access_token", TOKEN))
    rig.enrol()
    account = "crm" if "get_jsapi" in path or path.endswith(("ticket/get", "gettoken")) else "main"
    account = "stable" if secret == STABLE_SECRET else account
    whose = {SECRET: APPID, STABLE_SECRET: STABLE_APPID, CORP_SECRET: CORPID}.get(secret)
    for fault in faults(secret, path):
        # When everything is due and meets the fault, and so does a report
        rig.world.clock.sleep(7300)
        rig.world.wechat.fail(path, *[fault] * 3, account=whose)
        rig.wake({"wake": "guard"})
        if path == "/cgi-bin/stable_token" and secret == SECRET:
            rig.parameter("main", appid=APPID, secret=SECRET, tickets=["jsapi", "wx_card"])
        rig.ask(f"/v1/accounts/{account}/access-token")
        rig.world.wechat.heal(path)
        rig.world.clock.sleep(700)
        rig.wake({"wake": "guard"})
        token = rig.ask(f"/v1/accounts/{account}/access-token").get("access_token", TOKEN)
        rig.world.wechat.fail(path, *[fault] * 3, account=whose)
        rig.ask(f"/v1/accounts/{account}/access-token/reports", json.dumps({"access_token": token}))
        rig.ask(f"/v1/accounts/{account}")
        rig.world.wechat.heal(path)


def responses(field: str, value: str) -> list[Fault]:
    """A WeChat that hands out this value for a while."""
    return [Fault.malformed(json.dumps({field: value, "expires_in": 7200}).encode())] * 500


def test_a_token_of_any_letters(rig: Rig) -> None:
    # Given a WeChat that mints tokens and tickets with such letters as look different elsewhere
    for path in ("/cgi-bin/token", "/cgi-bin/stable_token", "/cgi-bin/gettoken"):
        rig.world.wechat.fail(path, *responses("access_token", TOKEN))
    for path in ("/cgi-bin/ticket/getticket", "/cgi-bin/get_jsapi_ticket", "/cgi-bin/ticket/get"):
        rig.world.wechat.fail(path, *responses("ticket", TICKET))
    rig.enrol()
    assert set(rig.tokens().values()) == {TOKEN}
    assert rig.ask("/v1/accounts/main/tickets/jsapi")["ticket"] == TICKET
    rig.all_calls()
    rig.all_wakes()
    # And one that repeats them when it refuses them
    for form in sorted(spellings(TOKEN)):
        rig.world.clock.sleep(30)
        rig.world.wechat.fail("/cgi-bin/get_api_domain_ip", Fault.error(50002, f"restricted: {form}"))
        rig.ask("/v1/accounts/main/access-token/reports", json.dumps({"access_token": TOKEN}))
        rig.ask("/v1/accounts/main")


def client_error(operation: str, body: bytes) -> Exception:
    message = f"1 validation error detected: Value '{body.decode()}' {SECRET} {TOKEN} failed to satisfy constraint"
    return ClientError({"Error": {"Code": "ValidationException", "Message": message}}, operation)


AWS_FAILURES: dict[str, Callable[[str, bytes], Exception]] = {
    "refused, with what was sent": client_error,
    "refused by our own client": lambda _, body: ParamValidationError(
        report=f"Invalid value: {body.decode()} {SECRET} {TOKEN}"
    ),
    "out of reach": lambda operation, _: EndpointConnectionError(endpoint_url=f"https://{operation}/{TOKEN}"),
}


@pytest.mark.parametrize("failure", AWS_FAILURES.values(), ids=AWS_FAILURES)
@pytest.mark.parametrize(
    "broken", ["ssm", "dynamodb.UpdateItem", "dynamodb.PutItem", "dynamodb.Query", "dynamodb", "lambda"]
)
def test_an_aws_that_fails(rig: Rig, broken: str, failure: Callable[[str, bytes], Exception]) -> None:
    rig.enrol()
    tokens = rig.tokens()

    def fail(operation: str, body: bytes) -> None:
        if operation.startswith(broken):
            raise failure(operation, body)

    for pause in (0, 7300):
        rig.world.clock.sleep(pause)
        rig.broken = fail
        rig.all_wakes()
        rig.parameter("main", appid=APPID, secret=SECRET, tickets=["jsapi"])
        rig.wake({"verify": {"account": "main", "fingerprint": fingerprint(tokens["main"])}})
        rig.ask("/v1/accounts/main/access-token/reports", json.dumps({"access_token": tokens["main"]}))
        rig.ask("/v1/accounts")
        rig.ask("/v1/accounts/main/jsapi-signature?url=https://example.com/")
        query = {"grant_type": "client_credential", "appid": APPID, "secret": rig.keys[0]}
        rig.ask(f"/cgi-bin/token?{urlencode(query)}")
        rig.ask("/cgi-bin/stable_token", json.dumps(query | {"force_refresh": True}))
        rig.ask(f"/cgi-bin/ticket/getticket?{urlencode({'access_token': tokens['main'], 'type': 'jsapi'})}")
        rig.broken = lambda operation, body: None


def test_items_that_hold_what_they_should_not(rig: Rig) -> None:
    # Given items with attributes missing or of the wrong kind, which were not foreseen
    rig.enrol()
    for item in rig.aws.items.values():
        for name in ("kind", "lease_until"):
            item.pop(name, None)
        item |= {name: {"S": "text"} for name in ("epoch", "accounts", "credentials") if name in item}
    rig.all_calls()
    rig.all_wakes()
    assert rig.said.by_channel["exceptions"]


# --- over a real connection, as it is sent and not as the `world` has it


class _Raw(socketserver.StreamRequestHandler):
    """Responds with raw bytes; `{}` in them is what was asked."""

    responses: ClassVar[list[bytes]] = []

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n") and (line := self.rfile.readline()):
            head += line
        length = re.search(rb"content-length: (\d+)", head.lower())
        asked = head.split(b"\r\n")[0] + (self.rfile.read(int(length[1])) if length else b"")
        self.wfile.write(self.responses.pop(0).replace(b"{}", asked) if self.responses else b"")


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
RAW_RESPONSES = {
    "no HTTP": b"{}\r\n\r\n",
    "an odd status": b"HTTP/1.1 {} OK\r\n\r\n",
    "a broken header": HEAD + b"what was asked: {}\r\nno colon here {}\r\n\r\n" + b"null",
    "a header that is none": HEAD + b" {}\r\n\r\n" + b"null",
    "two lengths": HEAD + b"Content-Length: 1\r\nContent-Length: {}\r\n\r\n" + b"null",
    "a broken chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n{}\r\n",
    "length and chunks": HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nnull\r\n0\r\n\r\n",
    "no gzip": HEAD + b"Content-Encoding: gzip\r\n\r\n{}",
    "no deflate": HEAD + b"Content-Encoding: deflate, br, {}\r\n\r\n{}",
    "too short": HEAD + b"Content-Length: 1000\r\n\r\n{}",
    "a cookie": HEAD + b"Set-Cookie: {}; Domain=;;=\r\nLocation: {}\r\n\r\n{}",
    "another character set": b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset={}\r\n\r\n{}",
    "nothing": b"",
}


@pytest.mark.parametrize("response", RAW_RESPONSES.values(), ids=RAW_RESPONSES)
def test_a_peer_that_speaks_no_proper_http(rig: Rig, response: bytes) -> None:
    class Handler(_Raw):
        responses = [response] * 30

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            rig.world.environment |= {"WECHAT_API_URL": url, "WECOM_API_URL": url}
            instance = rig.world.refresh_instance()
            rig.world.invoke = lambda event, *_: instance(event, None)  # type: ignore[method-assign]
            rig.enrol()
            for account in ("main", "stable", "crm"):
                rig.wake({"renew": {"account": account, "credential": "access_token"}})
                rig.ask(f"/v1/accounts/{account}")
            rig.wake({"wake": "tick"})
        finally:
            server.shutdown()
    assert not Handler.responses[:1] or len(Handler.responses) < 30, "no request came"


def test_their_debug_lines_stay_off_whatever_level_ours_has() -> None:
    # These would write whole requests: with the functions' own log at DEBUG, as here, they do not.
    with listening():
        for name in QUIET:
            assert logging.getLogger(f"{name}.anything").getEffectiveLevel() >= logging.WARNING


AWS_KEY, AWS_SECRET, AWS_TOKEN = "AKIDMARKED0123456789", "aws/secret+marked=", "aws-session-token/marked+="


def test_a_reader_with_its_own_client(rig: Rig) -> None:
    # Given an AWS that repeats in its errors all that was sent, with the credentials that signed it
    def application(environ: Any, start_response: Any) -> Any:
        request = Request(environ)
        echo = f"{dict(request.headers)} {request.get_data(as_text=True)}"
        response = {"__type": f"com.amazon#InvalidSignatureException:{echo}", "message": echo}
        return Response(json.dumps(response), 400)(environ, start_response)

    server = Server(application)
    server.start()
    environment = {
        **rig.world.environment,
        "AWS_ENDPOINT_URL": server.url,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": AWS_KEY,
        "AWS_SECRET_ACCESS_KEY": AWS_SECRET,
        "AWS_SESSION_TOKEN": AWS_TOKEN,
    }
    rig.never |= {AWS_SECRET, AWS_TOKEN}
    try:
        reader = api.create_handler(environment, rig.world.clock, lambda _: None)
        rig.world.api_instance = lambda: reader  # type: ignore[method-assign]
        rig.all_calls()
    finally:
        server.stop()
