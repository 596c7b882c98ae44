"""An account's record: what is taken, and what is refused without ever being repeated."""

import json
import traceback

import pytest

from token_keeper.accounts import Accounts, parse_record
from token_keeper.errors import InvalidRecordError
from token_keeper.model import Kind

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


INVALID = {
    "nothing": "",
    "the secret alone": SECRET,
    "a string": f'"{SECRET}"',
    "null": "null",
    "a list": f'["{SECRET}"]',
    "cut": f'{{"appid": "wx1", "secret": "{SECRET}',
    "a trailing comma": f'{{"appid": "wx1", "secret": "{SECRET}",}}',
    "a byte order mark": f'\ufeff{{"appid": "wx1", "secret": "{SECRET}"}}',
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
    assert not error.retryable
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
    assert Accounts(no_aws, path).name_of(parameter) == account  # type: ignore[arg-type]
