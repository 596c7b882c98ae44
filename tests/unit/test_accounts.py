"""An account's record: what is taken, and what is refused without ever being repeated."""

import json
import traceback
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

from token_keeper.errors import InvalidRecordError, ParametersUnavailableError
from token_keeper.model import Account, Kind
from token_keeper.refresh.parameter_store import ParameterStore, parse_record

SECRET = "s3cr3t-0123456789abcdef"


@pytest.mark.parametrize(
    ("record", "app_id", "kind", "tickets"),
    [
        ({"appid": "wx1"}, "wx1", Kind.TOKEN, ()),
        ({"appid": "wx1", "endpoint": "token", "tickets": []}, "wx1", Kind.TOKEN, ()),
        ({"appid": "wx1", "endpoint": "stable_token"}, "wx1", Kind.STABLE_TOKEN, ()),
        ({"appid": "wx1", "tickets": ["jsapi", "wx_card"]}, "wx1", Kind.TOKEN, ("jsapi", "wx_card")),
        ({"appid": "wx1", "tickets": ["jsapi", "jsapi"]}, "wx1", Kind.TOKEN, ("jsapi",)),
        ({"corpid": "ww1"}, "ww1", Kind.CORP_TOKEN, ()),
        ({"corpid": "ww1", "tickets": ["jsapi", "agent_config"]}, "ww1", Kind.CORP_TOKEN, ("jsapi", "agent_config")),
    ],
)
def test_a_record_makes_an_account(
    record: dict[str, object], app_id: str, kind: Kind, tickets: tuple[str, ...]
) -> None:
    account = parse_record("main", json.dumps(record | {"secret": SECRET}))
    assert (account.name, account.app_id, account.secret) == ("main", app_id, SECRET)
    assert (account.kind, account.tickets) == (kind, tickets)


def test_every_printable_secret_is_taken_as_it_is() -> None:
    secret = "".join(map(chr, range(0x21, 0x7F)))
    assert parse_record("main", json.dumps({"appid": "wx1", "secret": secret})).secret == secret


@pytest.mark.parametrize("before", ["", "\ufeff", "\r\n", "\ufeff\r\n", "\n\ufeff"])
@pytest.mark.parametrize("after", ["", "\n", "\r\n\r\n", " \t"])
def test_what_an_editor_leaves_around_a_record_is_harmless(before: str, after: str) -> None:
    record = json.dumps({"appid": "wx1", "secret": SECRET})
    assert parse_record("main", f"{before}{record}{after}") == parse_record("main", record)


INVALID = {
    "nothing": "",
    "the secret alone": SECRET,
    "a string": f'"{SECRET}"',
    "null": "null",
    "a list": f'["{SECRET}"]',
    "cut": f'{{"appid": "wx1", "secret": "{SECRET}',
    "a trailing comma": f'{{"appid": "wx1", "secret": "{SECRET}",}}',
    "two byte order marks": f'\ufeff\ufeff{{"appid": "wx1", "secret": "{SECRET}"}}',
    "a byte order mark at the end": f'{{"appid": "wx1", "secret": "{SECRET}"}}\ufeff',
    "nested beyond all measure": "[" * 100_000,
    "no secret": '{"appid": "wx1"}',
    "no appid": f'{{"secret": "{SECRET}"}}',
    "an unknown field": f'{{"appid": "wx1", "secret": "{SECRET}", "Endpoint": "token"}}',
    "the secret as a field": f'{{"appid": "wx1", "secret": "{SECRET}", "{SECRET}": 1}}',
    "appid and corpid": f'{{"appid": "wx1", "corpid": "ww1", "secret": "{SECRET}"}}',
    "an endpoint for WeCom": f'{{"corpid": "ww1", "secret": "{SECRET}", "endpoint": "token"}}',
    "an empty appid": f'{{"appid": "", "secret": "{SECRET}"}}',
    "a null appid": f'{{"appid": null, "secret": "{SECRET}"}}',
    "the secret in the appid": f'{{"appid": "{SECRET} {SECRET}", "secret": "{SECRET}"}}',
    "a slash in the appid": f'{{"appid": "wx/1", "secret": "{SECRET}"}}',
    "an appid without end": json.dumps({"appid": "w" * 65, "secret": SECRET}),
    "an empty secret": '{"appid": "wx1", "secret": ""}',
    "a null secret": '{"appid": "wx1", "secret": null}',
    "a number as secret": '{"appid": "wx1", "secret": 31337313373133}',
    "a blank in the secret": f'{{"appid": "wx1", "secret": "{SECRET} "}}',
    "a line break in the secret": f'{{"appid": "wx1", "secret": "{SECRET}\\n"}}',
    "a secret in Chinese": f'{{"appid": "wx1", "secret": "{SECRET}密"}}',
    "half a character in the secret": f'{{"appid": "wx1", "secret": "{SECRET}\\ud800"}}',
    "a secret without end": json.dumps({"appid": "wx1", "secret": SECRET * 20}),
    "an unknown endpoint": f'{{"appid": "wx1", "secret": "{SECRET}", "endpoint": "{SECRET}"}}',
    "a null endpoint": f'{{"appid": "wx1", "secret": "{SECRET}", "endpoint": null}}',
    "WeCom's kind as endpoint": f'{{"appid": "wx1", "secret": "{SECRET}", "endpoint": "corp_token"}}',
    "a list as endpoint": f'{{"appid": "wx1", "secret": "{SECRET}", "endpoint": ["token"]}}',
    "an object as endpoint": f'{{"appid": "wx1", "secret": "{SECRET}", "endpoint": {{}}}}',
    "a ticket in text": f'{{"appid": "wx1", "secret": "{SECRET}", "tickets": "jsapi"}}',
    "null tickets": f'{{"appid": "wx1", "secret": "{SECRET}", "tickets": null}}',
    "an unknown ticket": f'{{"appid": "wx1", "secret": "{SECRET}", "tickets": ["{SECRET}"]}}',
    "an object as ticket": f'{{"appid": "wx1", "secret": "{SECRET}", "tickets": [{{}}]}}',
    "WeCom's ticket": f'{{"appid": "wx1", "secret": "{SECRET}", "tickets": ["agent_config"]}}',
    "an Official Account's ticket": f'{{"corpid": "ww1", "secret": "{SECRET}", "tickets": ["wx_card"]}}',
}


@pytest.mark.parametrize("value", INVALID.values(), ids=INVALID)
def test_what_is_no_record_is_refused_and_never_repeated(value: str) -> None:
    # When a parameter holds something else
    with pytest.raises(InvalidRecordError) as refused:
        parse_record("main", value)
    # Then the error says what is wrong, and neither it nor anything it carries repeats the value
    error = refused.value
    assert str(error)
    said = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
    assert not any(secret in said for secret in (SECRET, SECRET[:8], "31337313373133"))
    assert (error.__cause__, error.__context__) == (None, None)


def test_an_account_does_not_show_its_secret() -> None:
    account = parse_record("main", json.dumps({"appid": "wx1", "secret": SECRET}))
    assert SECRET not in f"{account} {account!r} {[account]}"
    assert SECRET not in parse_record("main", json.dumps({"corpid": "ww1", "secret": SECRET})).claim


@pytest.mark.parametrize(
    ("parameter", "account"),
    [
        ("/keeper/accounts/main", "main"),
        ("/keeper/accounts/0-a", "0-a"),
        ("/keeper/accounts/" + "a" * 64, "a" * 64),
        ("/keeper/accounts/" + "a" * 65, None),
        ("/keeper/accounts/Main", None),
        ("/keeper/accounts/-main", None),
        ("/keeper/accounts/main_2", None),
        ("/keeper/accounts/main\n", None),
        ("/keeper/accounts/", None),
        ("/keeper/accounts", None),
        ("/keeper/accounts/team/main", None),
        ("/keeper/accounts-old/main", None),
        ("/elsewhere/keeper/accounts/main", None),
        ("main", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("path", ["/keeper/accounts", "/keeper/accounts/"])
def test_only_a_parameter_right_below_the_path_is_an_accounts(path: str, parameter: str, account: str | None) -> None:
    no_aws: object = None
    assert ParameterStore(no_aws, path).name_of(parameter) == account  # type: ignore[arg-type]


# --- reading many


class FakeParameterStore:
    """Parameter Store with a usable record under every name; a call for a name in `failing` fails as it says."""

    def __init__(self, failing: dict[str, Exception]) -> None:
        self.failing = failing
        self.calls: list[list[str]] = []

    def get_parameters(self, Names: list[str], **_: Any) -> Any:  # noqa: N803 - boto3's name
        self.calls.append([name.rpartition("/")[2] for name in Names])
        for name in self.calls[-1]:
            if name in self.failing:
                raise self.failing[name]
        value = json.dumps({"appid": "wx1", "secret": SECRET})
        modified = {"Version": 1, "LastModifiedDate": datetime.now(UTC)}
        return {"Parameters": [{"Name": name, "Value": value, **modified} for name in Names]}


def aws_error(code: str, status: int = 400) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": SECRET}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "GetParameters",
    )


NAMES = [f"a{number}" for number in range(10)]


def read_all(store: FakeParameterStore) -> tuple[list[str], list[str]]:
    """The accounts that could be read, and those that could not."""
    records = dict(ParameterStore(store, "/keeper/accounts").read(NAMES))  # type: ignore[arg-type]
    assert list(records) == NAMES
    failed = [name for name, record in records.items() if isinstance(record.content, ParametersUnavailableError)]
    return [name for name, record in records.items() if isinstance(record.content, Account)], failed


@pytest.mark.parametrize(
    "code",
    [
        "InvalidKeyId",
        "AccessDeniedException",
        "KMSInvalidStateException",
        "DisabledException",
        "InvalidCiphertextException",
        "NotFoundException",
        "ValidationException",
    ],
)
def test_one_bad_parameter_never_stops_the_others(code: str) -> None:
    # Given a parameter whose key cannot be used, which has every request with it refused
    store = FakeParameterStore({"a3": aws_error(code)})
    assert read_all(store) == ([name for name in NAMES if name != "a3"], ["a3"])
    assert store.calls == [NAMES, *([name] for name in NAMES)]


@pytest.mark.parametrize(
    "error",
    [
        aws_error("ThrottlingException"),
        aws_error("RequestLimitExceeded", 503),
        aws_error("InternalServerError", 500),
        EndpointConnectionError(endpoint_url="https://ssm.invalid/"),
    ],
    ids=lambda error: type(error).__name__ + str(error)[:60],
)
def test_throttling_or_an_outage_is_no_ten_calls(error: ClientError | BotoCoreError) -> None:
    store = FakeParameterStore(dict.fromkeys(NAMES, error))
    assert read_all(store) == ([], NAMES)
    assert len(store.calls) == 1


def test_an_outage_while_each_is_read_ends_the_calls() -> None:
    # Given a bad parameter, and a Parameter Store that throttles from the fifth on
    store = FakeParameterStore({"a0": aws_error("InvalidKeyId"), "a4": aws_error("ThrottlingException")})
    assert read_all(store) == (["a1", "a2", "a3"], ["a0", *NAMES[4:]])
    assert len(store.calls) == 1 + 5
