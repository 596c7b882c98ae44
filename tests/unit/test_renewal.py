"""The rules of renewal as tables: when due, how long promised, what follows a failure."""

from dataclasses import replace

import pytest

from token_keeper import renewal
from token_keeper.model import ACCESS_TOKEN, Credential, Failure, FailureClass, Grant, Kind

FETCHED = 1_000_000
FULL_LIFE = 7200
EXPIRES = FETCHED + FULL_LIFE


def credential(kind: Kind, **changes: object) -> Credential:
    fresh = Credential(
        account="main",
        name=ACCESS_TOKEN,
        kind=kind,
        app_id="wx0",
        epoch=1,
        due_at=EXPIRES - renewal.RULES[kind].due_before,
        value="old",
        fetched_at=FETCHED,
        expires_at=EXPIRES,
    )
    return replace(fresh, **changes)  # type: ignore[arg-type]


def failure(failure_class: FailureClass, errcode: int | None = None) -> Failure:
    return Failure(failure_class, errcode, "", "", FETCHED)


@pytest.mark.parametrize(
    ("kind", "due_after"),
    [
        (Kind.TOKEN, 6660),
        (Kind.STABLE_TOKEN, 6930),
        (Kind.CORP_TOKEN, 6900),
        (Kind.TICKET, 6900),
        (Kind.CORP_TICKET, 6900),
    ],
)
def test_a_new_value_is_due_before_it_expires(kind: Kind, due_after: int) -> None:
    # Given a credential without a value
    unfetched = credential(kind, value=None)
    # When WeChat grants a value that lives 7200 s
    due_at = renewal.next_due(unfetched, Grant("new", FULL_LIFE, FETCHED))
    # Then it is due by its kind's rule
    assert due_at == FETCHED + due_after


@pytest.mark.parametrize(("life", "due_after"), [(1, 1), (60, 30), (600, 300), (1080, 540), (1081, 541)])
def test_a_short_lived_token_is_due_at_half_its_life_at_the_latest(life: int, due_after: int) -> None:
    assert renewal.next_due(credential(Kind.TOKEN), Grant("new", life, FETCHED)) == FETCHED + due_after


@pytest.mark.parametrize(
    ("kind", "together", "at_most_earlier"),
    [
        (Kind.TOKEN, 1, 0),  # the main tick's
        (Kind.TOKEN, 299, 0),
        (Kind.TOKEN, 300, 60),
        (Kind.TOKEN, 10_000, 33 * 60),
        (Kind.TICKET, 10_000, 33 * 60),
        (Kind.TOKEN, 1_000_000, 3600 - 540),  # not before half its life
        (Kind.STABLE_TOKEN, 10_000, 0),  # the same would come back
    ],
)
def test_many_that_are_renewed_together_do_not_come_due_together(
    kind: Kind, together: int, at_most_earlier: int
) -> None:
    # Given accounts that are renewed together, a thousand of them seen here
    grant, usual = Grant("new", FULL_LIFE, FETCHED), EXPIRES - renewal.RULES[kind].due_before
    # When it is said when each is due again
    due = [
        renewal.next_due(replace(credential(kind), account=f"a{number}"), grant, together=together)
        for number in range(1000)
    ]
    # Then they are spread over the time before the usual moment, each always to the same place
    assert usual - at_most_earlier <= min(due) <= max(due) <= usual
    if at_most_earlier:
        assert max(due) - min(due) > at_most_earlier * 0.9
    again = renewal.next_due(replace(credential(kind), account="a0"), grant, together=together)
    assert again == due[0]


@pytest.mark.parametrize(
    ("kind", "left", "due_in"),
    [
        (Kind.STABLE_TOKEN, 600, 330),  # asked too early: by the usual rule
        (Kind.STABLE_TOKEN, 270, 60),  # asked in time, and the same came back: soon again
        (Kind.STABLE_TOKEN, 30, 30),
        (Kind.CORP_TOKEN, 300, 300),  # the new one comes when the old one has expired
        (Kind.CORP_TOKEN, 301, 1),
    ],
)
def test_when_the_same_value_comes_back_it_is_asked_for_again_in_time(kind: Kind, left: int, due_in: int) -> None:
    # Given a value with some seconds left
    now = EXPIRES - left
    # When WeChat gives the same one again
    due_at = renewal.next_due(credential(kind), Grant("old", left, now))
    # Then it is asked for again before or when it expires
    assert due_at == now + due_in


@pytest.mark.parametrize(
    ("asked_at", "expires_in", "expires_at"),
    [
        (EXPIRES - 300, FULL_LIFE, EXPIRES),  # does not count down: the life counts from when it was first seen
        (EXPIRES - 300, 200, EXPIRES - 100),  # does count down, and says less
        (EXPIRES, FULL_LIFE, EXPIRES + renewal.OLD_TICKET_LIFE),  # still handed out: trusted for a while
    ],
)
def test_a_tickets_life_counts_from_when_its_value_was_first_seen(
    asked_at: int, expires_in: int, expires_at: int
) -> None:
    assert renewal.expiry(credential(Kind.TICKET), Grant("old", expires_in, asked_at)) == expires_at


@pytest.mark.parametrize(
    ("kind", "at", "expires_in"),
    [
        # planned rotation at 6540 (the tick looks 120 s ahead), 300 s overlap, 5 s margin
        (Kind.TOKEN, 0, 6835),
        (Kind.TOKEN, 6539, 296),
        (Kind.TOKEN, 6600, 295),  # a late renewal: it may begin right after this reading
        (Kind.TOKEN, 7000, 195),
        (Kind.TOKEN, 7195, 1),
        (Kind.TOKEN, 7199, 1),
        (Kind.TOKEN, 7200, None),
        # nothing is rotated while it lives
        (Kind.STABLE_TOKEN, 0, 7195),
        (Kind.STABLE_TOKEN, 6930, 265),
        (Kind.STABLE_TOKEN, 7200, None),
        # WeCom and tickets: no overlap is promised, so the promise ends with the planned rotation
        (Kind.CORP_TOKEN, 0, 6895),
        (Kind.CORP_TOKEN, 6899, 1),
        (Kind.CORP_TOKEN, 7199, 1),
        (Kind.TICKET, 0, 6895),
    ],
)
def test_a_promise_ends_with_the_overlap_of_the_earliest_planned_rotation(
    kind: Kind, at: int, expires_in: int | None
) -> None:
    now = FETCHED + at
    assert renewal.promise(credential(kind), read_at=now, now=now) == expires_in


def test_a_value_from_memory_is_promised_as_of_when_it_was_read() -> None:
    # Given a token that was read when its renewal could begin at any moment
    read_at = FETCHED + 6600
    # When it is handed out from memory 10 s later
    expires_in = renewal.promise(credential(Kind.TOKEN), read_at=read_at, now=read_at + 10)
    # Then the promise has shrunk by as much: a renewal may have begun since
    assert expires_in == 285


@pytest.mark.parametrize(
    ("kind", "since_attempt", "expires_in"),
    [
        (Kind.TOKEN, 0, 295),
        (Kind.TOKEN, 100, 195),
        (Kind.TOKEN, 299, 1),
        (Kind.TOKEN, 300, None),  # its successor may have been minted 300 s ago
        (Kind.STABLE_TOKEN, 100, 6735),  # a repeated call mints nothing
        (Kind.CORP_TOKEN, 100, 1),  # may live on, may not: served, and nothing promised
    ],
)
def test_from_an_attempt_without_an_answer_on_nobody_is_promised_more_than_the_overlap(
    kind: Kind, since_attempt: int, expires_in: int | None
) -> None:
    # Given a credential whose renewal began 360 s after it was fetched and has not ended well
    attempt = FETCHED + 360
    at_risk = credential(kind, at_risk_since=attempt)
    # When it is read some seconds after that
    now = attempt + since_attempt
    # Then the promise counts from the attempt
    assert renewal.promise(at_risk, read_at=now, now=now) == expires_in


def test_while_failing_a_corrected_record_may_rotate_at_any_moment() -> None:
    # Given a token whose renewal was refused, to be tried again in 300 s
    now = FETCHED + 6600
    failing = credential(Kind.TOKEN, failures=1, due_at=now + 300)
    # Then only the overlap is promised, because the next attempt may be made sooner
    assert renewal.promise(failing, read_at=now, now=now) == 295


@pytest.mark.parametrize(
    ("changes", "at", "state"),
    [
        ({"value": None}, 0, "never_fetched"),
        ({}, 0, "fresh"),
        ({}, 6660, "due"),
        ({"lease_until": FETCHED + 60, "due_at": FETCHED + 60}, 30, "due"),
        ({"failures": 1, "last_error": failure(FailureClass.TRANSIENT)}, 6700, "failing"),
        ({"failures": 9, "last_error": failure(FailureClass.TRANSIENT)}, 7200, "expired"),
        ({"at_risk_since": FETCHED}, 300, "expired"),
    ],
)
def test_the_state_says_the_health_in_a_word(changes: dict[str, object], at: int, state: str) -> None:
    assert renewal.state(credential(Kind.TOKEN, **changes), FETCHED + at) == state


@pytest.mark.parametrize(
    ("failure_class", "errcode", "failures", "seconds"),
    [
        (FailureClass.TRANSIENT, -1, 1, 60),
        (FailureClass.TRANSIENT, None, 1000, 60),
        (FailureClass.CREDENTIAL, 42001, 1, 60),
        (FailureClass.QUOTA, 45009, 1, 1800),
        (FailureClass.CONFIGURATION, 40125, 1, 300),
        (FailureClass.CONFIRMATION, 89503, 1, 300),
        (FailureClass.CONFIRMATION, 89507, 1, 3600),
        (FailureClass.CONFIRMATION, 89506, 1, 86400),
        (FailureClass.DEFECT, 41001, 1, 300),
        (FailureClass.UNKNOWN, 77777, 5, 60),
        (FailureClass.UNKNOWN, 77777, 6, 300),
    ],
)
def test_each_class_of_failure_has_its_next_attempt(
    failure_class: FailureClass, errcode: int | None, failures: int, seconds: int
) -> None:
    assert renewal.retry_after(failure(failure_class, errcode), failures) == seconds


def test_a_dead_renewal_is_repaired_while_the_old_token_works() -> None:
    guard_interval = 60
    assert renewal.LEASE + guard_interval < renewal.RULES[Kind.TOKEN].overlap


@pytest.mark.parametrize(
    ("changes", "expires_at"),
    [
        ({}, FETCHED + 7200),
        # An attempt an hour ago had no answer: the ticket may be the one that it made
        ({"at_risk_since": FETCHED - 3600}, FETCHED + 3600),
        ({"at_risk_since": FETCHED - 90_000}, FETCHED + 300),
        # It was kept before, and it is not known since when
        ({"age_unknown": True}, FETCHED + 300),
    ],
)
def test_a_tickets_life_counts_from_when_it_may_first_have_been_given(
    changes: dict[str, object], expires_at: int
) -> None:
    without_value = replace(credential(Kind.TICKET), value=None, **changes)  # type: ignore[arg-type]
    assert renewal.expiry(without_value, Grant("new", 7200, FETCHED)) == expires_at


@pytest.mark.parametrize("late", [-300, 0, 600, 90_000])
def test_a_new_tickets_life_counts_from_the_old_ones_end_at_the_latest(late: int) -> None:
    # Given a ticket that is renewed before, at or after its end
    asked_at = EXPIRES + late
    # When WeChat gives another, which somebody else with this appid may have had since that end
    expires_at = renewal.expiry(credential(Kind.TICKET), Grant("new", 7200, asked_at))
    # Then it is not trusted for longer than that, but for a while
    assert expires_at == max(asked_at + 300, min(asked_at, EXPIRES) + 7200)
