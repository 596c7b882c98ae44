"""`refresh`: what RefreshFunction is asked, and what is said of its summary."""

import json
from typing import Any

import pytest

from tests.support.command_line import ERROR, SECRET, Service, run, summary


def test_refresh_replaces_the_token_and_says_so(refresh_function: Service) -> None:
    # Given a RefreshFunction that renews
    times = {
        "expires_at": "2026-11-22T15:32:00Z",
        "promised_until": "2026-11-22T15:26:55Z",
        "renews_at": "2026-11-22T15:23:00Z",
    }
    renewed = {"account": "main", "credential": "access_token", "fingerprint": "9f86d081884c7d65", **times}
    refresh_function.response = summary(renewed=[renewed])
    # When the token is refreshed
    result = run("refresh", "main")
    # Then it was asked to rotate, and the new value is named
    event = {"renew": {"account": "main", "credential": "access_token", "rotate": True}}
    assert refresh_function.requests == [("/2015-03-31/functions/refresh/invocations", json.dumps(event))]
    assert result.exit_code == 0
    assert all(text in result.stdout for text in ("9f86d081884c7d65", *times.values(), "5 minutes"))


@pytest.mark.parametrize(
    ("outcomes", "says"),
    [
        (
            {"skipped": [{"account": "main", "credential": "jsapi", "reason": "another renewal is in progress"}]},
            ["another"],
        ),
        (
            {
                "failed": [
                    {"account": "main", "credential": "jsapi", "next_attempt_at": "2026-11-22T13:32:00Z", **ERROR}
                ]
            },
            ["configuration 40164 invalid ip", ERROR["remedy"], "2026-11-22T13:32:00Z"],
        ),
        (
            {
                "failed": [
                    {"account": "main", "credential": "jsapi", "next_attempt_at": "2026-11-22T13:32:00Z"}
                    | {"class": "transient", "errcode": None, "errmsg": "no response", "remedy": "Wait."}
                ]
            },
            ["transient no response."],
        ),
    ],
)
def test_refresh_exits_with_1_where_nothing_was_renewed(
    refresh_function: Service, outcomes: dict[str, Any], says: list[str]
) -> None:
    refresh_function.response = summary(**outcomes)
    result = run("refresh", "main", "--credential", "jsapi")
    assert '"credential": "jsapi"' in refresh_function.requests[0][1]
    assert result.exit_code == 1
    assert all(text in result.stdout for text in says)


def test_a_broken_refresh_function_is_asked_once(refresh_function: Service) -> None:
    # Given a RefreshFunction that fails, with a text that was not checked for secrets
    refresh_function.headers = {"X-Amz-Function-Error": "Unhandled"}
    refresh_function.response = json.dumps({"errorType": "KeyError", "errorMessage": SECRET})
    # When the token is refreshed
    result = run("refresh", "main")
    # Then the log is pointed to, and no second rotation was asked for
    assert result.exit_code == 2
    assert "refresh failed with KeyError: read its log" in result.stderr
    assert SECRET not in result.output
    assert len(refresh_function.requests) == 1
