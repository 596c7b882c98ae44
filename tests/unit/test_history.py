"""What the page draws of a stack's reports: where a token's bar ends, and why."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.console.history import History
from infra.console.web import PAGE
from token_keeper.errors import KeeperError
from token_keeper.model import FailureClass, Kind, ReportOutcome, foreign_remedy, rfc3339
from token_keeper.refresh import errcodes
from token_keeper.renewal import State

FUNCTIONS = Path(__file__).parents[2] / "functions" / "token_keeper"
START = 1_800_000_000
LIFE = 7200

ACCOUNT = {"account": "main", "appid": "wx617a123bb8bc99cd", "endpoint": "token"}
CORP = {"account": "main", "corpid": "ww0123456789abcdef"}


def renewed(fingerprint: str, at: int, woken_by: str = "tick", credential: str = "access_token") -> dict[str, Any]:
    return {
        "woken_by": woken_by,
        "account": "main",
        "credential": credential,
        "fingerprint": fingerprint,
        "expires_at": rfc3339(at + LIFE),
        "promised_until": rfc3339(at + LIFE - 365),
        "renews_at": rfc3339(at + LIFE - 540),
    }


def failed(errcode: int) -> dict[str, Any]:
    failure = {"class": "transient", "errcode": errcode, "errmsg": "system error", "remedy": "None."}
    return {"woken_by": "guard", "account": "main", "credential": "access_token", **failure}


def health(fingerprint: str | None, credential: str = "access_token") -> dict[str, Any]:
    return {
        "credential": credential,
        "state": "fresh",
        "fingerprint": fingerprint,
        "fetched_at": fingerprint and rfc3339(START),
        "expires_at": fingerprint and rfc3339(START + LIFE),
        "renews_at": rfc3339(START + 6660),
        "failures": 0,
        "last_error": None,
        "calls_today": {"made": 1, "budget": 2000},
        "foreign_rotations": None,
        "unclear_since": None,
    }


def lane(history: History, now: int, fingerprint: str, account: dict[str, Any] = ACCOUNT, **of: str) -> dict[str, Any]:
    (lane,) = history.state([account | {"credentials": [health(fingerprint, **of)]}], now)["lanes"]
    return dict(lane)


def ends(lane: dict[str, Any]) -> list[tuple[str, int, str]]:
    return [(token["fingerprint"], token["ends_at"] - START, token["end"]) for token in lane["tokens"]]


def test_a_renewed_token_lives_until_its_overlap_ends() -> None:
    history = History()
    history.add(START, "renewed", renewed("old", START))
    history.add(START + 6660, "renewed", renewed("new", START + 6660))
    drawn = lane(history, START + 6700, "new")
    assert ends(drawn) == [("old", 6960, "overlap"), ("new", 13860, "expiry")]
    assert [token["row"] for token in drawn["tokens"]] == [0, 1]
    assert drawn["tokens"][0]["promised_until"] == START + LIFE - 365
    assert [mark["what"] for mark in drawn["marks"]] == ["renewed", "renewed"]


@pytest.mark.parametrize(("account", "credential"), [(CORP, "access_token"), (ACCOUNT, "jsapi")])
def test_where_no_overlap_is_promised_none_is_drawn(account: dict[str, Any], credential: str) -> None:
    history = History()
    for fingerprint, at in (("old", START), ("new", START + 6900)):
        history.add(at, "renewed", renewed(fingerprint, at, credential=credential))
    drawn = lane(history, START + 7000, "new", account, credential=credential)
    assert ends(drawn)[0] == ("old", 6900, "overlap")


@pytest.mark.parametrize("woken_by", ["probe", "verify"])
def test_what_was_found_dead_ends_there_and_is_repaired(woken_by: str) -> None:
    history = History()
    history.add(START, "renewed", renewed("old", START))
    history.add(START + 1000, "renewed", renewed("new", START + 1000, woken_by))
    drawn = lane(history, START + 1100, "new")
    assert ends(drawn)[0] == ("old", 1000, "killed")
    assert drawn["tokens"][0]["promised_until"] == START + 1000
    assert drawn["marks"][-1]["what"] == "repaired"


def test_a_token_that_was_killed_ends_before_it_is_found() -> None:
    history = History()
    history.add(START, "renewed", renewed("old", START))
    history.killed(START + 800, ["old"])
    history.add(START + 1000, "renewed", renewed("new", START + 1000, "guard"))
    drawn = lane(history, START + 1100, "new")
    assert ends(drawn)[0] == ("old", 800, "killed")
    assert [mark["what"] for mark in drawn["marks"]] == ["renewed", "killed", "repaired"]


def test_the_success_after_a_failure_is_a_repair() -> None:
    history = History()
    history.add(START, "failed", failed(-1))
    history.add(START + 60, "renewed", renewed("new", START + 60))
    history.add(START + 6720, "renewed", renewed("next", START + 6720))
    drawn = lane(history, START + 6800, "next")
    assert [mark["what"] for mark in drawn["marks"]] == ["failed", "repaired", "renewed"]


def test_the_same_value_again_prolongs_its_bar() -> None:
    history = History()
    for at in (START, START + 60, START + 120):
        history.add(at, "renewed", renewed("same", at))
    drawn = lane(history, START + 200, "same")
    assert ends(drawn) == [("same", LIFE + 120, "expiry")]
    # And many such responses are one mark
    assert [(mark["what"], mark["at"] - START) for mark in drawn["marks"]] == [("renewed", 0), ("repeated", 120)]


def test_health_that_is_ahead_of_the_report_changes_nothing() -> None:
    # Given a token that was found dead, and whose successor health shows already
    history = History()
    history.add(START - 1000, "renewed", renewed("old", START - 1000))
    lane(history, START + 1, "new")
    # When its report comes, perhaps after a while
    history.add(START + 20, "renewed", renewed("new", START, "probe"))
    # Then it is what the report says
    drawn = lane(history, START + 30, "new")
    assert ends(drawn) == [("old", 0, "killed"), ("new", LIFE, "expiry")]
    assert drawn["tokens"][1]["promised_until"] == START + LIFE - 365
    assert drawn["marks"][-1]["what"] == "repaired"


def test_a_token_of_before_the_reports_is_drawn_from_health() -> None:
    drawn = lane(History(), START + 100, "only")
    assert ends(drawn) == [("only", LIFE, "expiry")]
    assert drawn["tokens"][0]["promised_until"] is None


def test_what_is_over_for_long_is_left_out() -> None:
    history = History()
    history.add(START, "renewed", renewed("old", START))
    history.add(START + 6660, "renewed", renewed("new", START + 6660))
    drawn = lane(history, START + 16_000, "new")
    assert [token["fingerprint"] for token in drawn["tokens"]] == ["new"]
    assert drawn["marks"] == []


def test_other_fields_of_a_record_are_not_passed_on() -> None:
    history = History()
    history.add(START, "failed", failed(-1) | {"location": "x", "access_token": "a value"})
    history.add(START, "probed", {"alive": 1, "dead": 0, "unclear": 0, "left": 0, "function_arn": "a name"})
    state = history.state([ACCOUNT | {"credentials": [health(None)]}], START)
    assert "a value" not in str(state)
    assert "a name" not in str(state)
    assert state["checks"][0]["alive"] == 1


def test_an_account_without_a_token_has_an_empty_lane() -> None:
    state = History().state([ACCOUNT | {"credentials": [health(None)]}], START)
    assert [item["tokens"] for item in state["lanes"]] == [[]]


# --- the page's Chinese


def literals(node: ast.AST) -> Iterator[str]:
    """The texts that an expression may be; X stands for what varies."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in parts)
        case ast.IfExp(body=text, orelse=other):
            yield from (*literals(text), *literals(other))


def texts_of_failures() -> set[str]:
    """Every remedy, and every text of an error with which a credential may fail."""
    found = {*errcodes._REMEDIES.values(), *errcodes._CORP_REMEDIES.values(), *errcodes._CLASS_REMEDIES.values()}
    found |= {errcodes.meaning(errcode, "192.0.2.1", "secret")[1] for errcode in errcodes.IP_NOT_ALLOWED}
    found |= set(map(foreign_remedy, Kind))
    files = (FUNCTIONS / "errors.py", *FUNCTIONS.glob("refresh/*.py"), *FUNCTIONS.glob("table/*.py"))
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if (
                name.endswith("Error") and name != "OSError"
            ):
                found.update(text for argument in node.args for text in literals(argument))
            case ast.Assign(targets=[ast.Name(id=name)]) if name.lower().endswith(("remedy", "errmsg")):
                found.update(literals(node.value))
    return found


def words(language: str) -> str:
    """What the page says in a language, as its script has it."""
    return PAGE.partition(f"  {language}: {{")[2].partition("\n  },")[0]


def test_every_text_of_a_failure_is_translated() -> None:
    texts = texts_of_failures()
    beginnings = re.findall(r"\[/\^(.*?)/, ", words("zh"))

    assert KeeperError.remedy in texts
    assert len(texts) > 50
    assert [text for text in texts if not any(re.match(beginning, text) for beginning in beginnings)] == []
    # And no translation has outlived its text
    assert [beginning for beginning in beginnings if not any(re.match(beginning, text) for text in texts)] == []


def test_every_word_of_the_page_is_there_in_both_languages() -> None:
    names = re.compile(r"(?:^ +|, |{)(\w+): ", re.MULTILINE)
    english, chinese = (set(names.findall(words(language))) for language in ("en", "zh"))

    assert {*map(str, State), *map(str, ReportOutcome)} <= english <= chinese
    assert set(map(str, FailureClass)) <= chinese
