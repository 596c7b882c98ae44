"""Which health of an account says what of its changed record."""

from typing import Any

import pytest

from infra.cli.judgement import judge

REFUSED = {"class": "configuration", "errcode": 40125, "errmsg": "invalid appsecret", "at": "2026-11-22T13:24:00Z"}
UNCONFIRMED = {**REFUSED, "class": "confirmation", "errcode": 89503}
BUSY = {**REFUSED, "class": "transient", "errcode": -1}
INVALID = {**REFUSED, "errcode": None, "errmsg": "the field secret is missing"}
AGAIN = {**REFUSED, "at": "2026-11-22T13:25:00Z"}


@pytest.mark.parametrize(
    ("state", "error", "in_force", "before", "accepted"),
    [
        ("fresh", None, True, None, True),
        ("fresh", None, False, None, None),  # still by the record before
        ("due", None, True, None, None),  # about to be fetched with the new record
        ("never_fetched", None, True, None, None),
        ("never_fetched", REFUSED, True, None, False),
        ("fresh", REFUSED, True, None, False),  # the live token stays, the new secret is wrong
        ("fresh", UNCONFIRMED, True, None, False),
        ("failing", BUSY, True, None, None),  # not a verdict
        ("failing", REFUSED, True, REFUSED, None),  # of the record before
        ("failing", AGAIN, True, REFUSED, False),
        ("failing", REFUSED, False, None, None),  # came while the change was not applied yet
        ("fresh", INVALID, False, None, False),  # a record that cannot be applied is never in force
        ("fresh", INVALID, False, INVALID, None),
    ],
)
def test_the_verdict_is_that_on_the_record_in_force(
    state: str, error: dict[str, Any] | None, in_force: bool, before: dict[str, Any] | None, accepted: bool | None
) -> None:
    document = {"credentials": [{"credential": "access_token", "state": state, "last_error": error}]}
    known = {"access_token": before} if before else {}

    judgement = judge(document, in_force=in_force, credentials={"access_token"}, before=known)

    assert judgement.accepted is accepted


def test_only_the_credentials_that_the_change_concerns_count() -> None:
    ticket = {"credential": "jsapi", "state": "never_fetched", "last_error": REFUSED}
    document = {"credentials": [{"credential": "access_token", "state": "fresh", "last_error": None}, ticket]}

    assert judge(document, in_force=True, credentials={"access_token"}, before={}).accepted is True
    both = judge(document, in_force=True, credentials={"access_token", "jsapi"}, before={})
    assert (both.accepted, both.failures) == (False, {"jsapi": REFUSED})


def test_a_credential_that_is_not_listed_yet_is_no_verdict() -> None:
    document = {"credentials": [{"credential": "access_token", "state": "fresh", "last_error": None}]}

    assert judge(document, in_force=True, credentials={"access_token", "jsapi"}, before={}).accepted is None
