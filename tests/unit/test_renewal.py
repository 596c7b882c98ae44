"""The rules of renewal as tables: when due, how long promised, what follows a failure."""

from dataclasses import replace

import pytest

from token_keeper import renewal
from token_keeper.model import ACCESS_TOKEN, Credential, Failure, FailureClass, Grant, Kind

FETCHED = 1_000_000
FULL_LIFE = 7200
EXPIRES = FETCHED + FULL_LIFE
NOW = FETCHED + 6600


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
        seen_at=FETCHED,
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
        (Kind.TICKET, 150),  # the first one, whose age is unknown
        (Kind.CORP_TICKET, 150),
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
def test_a_short_lived_token_is_due_at_half_its_life_or_earlier(life: int, due_after: int) -> None:
    assert renewal.next_due(credential(Kind.TOKEN), Grant("new", life, FETCHED)) == FETCHED + due_after


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
def test_a_value_that_comes_back_is_asked_for_again_in_time(kind: Kind, left: int, due_in: int) -> None:
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
        (EXPIRES, FULL_LIFE, EXPIRES + 90),  # still handed out: it may end at any moment
        (EXPIRES - 40, FULL_LIFE, EXPIRES + 50),  # and the same just before that
    ],
)
def test_a_tickets_life_counts_from_first_sight(asked_at: int, expires_in: int, expires_at: int) -> None:
    known = credential(Kind.TICKET, previous_fingerprint="0" * 16)
    assert renewal.expiry(known, Grant("old", expires_in, asked_at)) == expires_at


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
def test_a_promise_ends_one_overlap_after_the_earliest_rotation(kind: Kind, at: int, expires_in: int | None) -> None:
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
def test_a_promise_is_capped_by_overlap_after_a_lost_response(
    kind: Kind, since_attempt: int, expires_in: int | None
) -> None:
    # Given a credential whose renewal began 360 s after it was fetched and has not ended well
    attempt = FETCHED + 360
    at_risk = credential(kind, at_risk_since=attempt)
    # When it is read some seconds after that
    now = attempt + since_attempt
    # Then the promise counts from the attempt
    assert renewal.promise(at_risk, read_at=now, now=now) == expires_in


def test_a_failing_tokens_promise_allows_for_a_corrected_record() -> None:
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
        ({"refused_at": FETCHED + 70}, 70, "expired"),
    ],
)
def test_the_state_says_the_health_in_a_word(changes: dict[str, object], at: int, state: str) -> None:
    assert renewal.state(credential(Kind.TOKEN, **changes), FETCHED + at) == state


@pytest.mark.parametrize(
    ("failure_class", "errcode", "failures", "seconds"),
    [
        (FailureClass.TRANSIENT, -1, 1, 55),
        (FailureClass.TRANSIENT, None, 1000, 55),
        (FailureClass.CREDENTIAL, 42001, 1, 55),
        (FailureClass.QUOTA, 45009, 1, 1800),
        (FailureClass.CONFIGURATION, 40125, 1, 300),
        (FailureClass.CONFIRMATION, 89503, 1, 300),
        (FailureClass.CONFIRMATION, 89507, 1, 3600),
        (FailureClass.CONFIRMATION, 89506, 1, 86400),
        (FailureClass.DEFECT, 41001, 1, 300),
        (FailureClass.UNKNOWN, 77777, 5, 55),
        (FailureClass.UNKNOWN, 77777, 6, 300),
    ],
)
def test_each_class_of_failure_has_its_next_attempt(
    failure_class: FailureClass, errcode: int | None, failures: int, seconds: int
) -> None:
    assert renewal.retry_after(failure(failure_class, errcode), failures) == seconds


@pytest.mark.parametrize(("before_midnight", "seconds"), [(1801, 1800), (1770, 1800), (60, 90), (1, 31)])
def test_a_used_up_quota_is_retried_when_wechats_day_begins(before_midnight: int, seconds: int) -> None:
    # Given a quota that was used up shortly before midnight in Beijing
    at = 20_718 * 86400 - 8 * 3600 - before_midnight
    used_up = replace(failure(FailureClass.QUOTA, 45009), at=at)
    # Then it is tried again half a minute after midnight at the latest
    assert renewal.retry_after(used_up, 1) == seconds


def test_a_dead_renewal_is_repaired_while_the_old_token_works() -> None:
    guard_interval = 60
    assert renewal.LEASE + guard_interval < renewal.RULES[Kind.TOKEN].overlap


@pytest.mark.parametrize(
    ("changes", "value", "asked_at", "expires_at"),
    [
        # The first ticket may have been created for another client: trusted 300 s at a time
        ({"value": None}, "new", FETCHED, FETCHED + 300),
        ({"expires_at": FETCHED + 300}, "old", FETCHED + 150, FETCHED + 450),
        # but not beyond its life as seen from the first time, unless WeChat goes on to repeat it
        ({"expires_at": FETCHED + 7100}, "old", FETCHED + 7000, FETCHED + 7200),
        ({"expires_at": FETCHED + 7200}, "old", FETCHED + 7200, FETCHED + 7500),
        # Its successor may have been there since the first one was last seen
        ({"expires_at": FETCHED + 450, "seen_at": FETCHED + 150}, "new", FETCHED + 300, FETCHED + 7350),
        # as may that of a ticket which was repeated after its end as counted here
        (
            {"expires_at": EXPIRES + 90, "seen_at": EXPIRES, "previous_fingerprint": "0" * 16},
            "new",
            EXPIRES + 60,
            EXPIRES + 7200,
        ),
        # or that the release before has written
        ({"expires_at": EXPIRES, "seen_at": 0, "previous_fingerprint": "0" * 16}, "new", EXPIRES + 60, EXPIRES + 7110),
        # The response of an attempt a minute ago was lost: the ticket may be the one that it made
        ({"at_risk_since": FETCHED - 60}, "new", FETCHED, FETCHED + 7140),
    ],
)
def test_a_tickets_life_counts_from_its_first_possible_use(
    changes: dict[str, object], value: str, asked_at: int, expires_at: int
) -> None:
    ticket = credential(Kind.TICKET, **changes)
    assert renewal.expiry(ticket, Grant(value, FULL_LIFE, asked_at)) == expires_at


@pytest.mark.parametrize(
    ("asked_at", "expires_at"),
    [
        (EXPIRES - 300, EXPIRES),  # WeCom repeats the token with a full expires_in: its life counts from first sight
        (EXPIRES + 5, EXPIRES + 95),  # still repeated after that: it may end at any moment
    ],
)
def test_a_repeated_corp_token_lives_no_longer(asked_at: int, expires_at: int) -> None:
    repeated = Grant("old", FULL_LIFE, asked_at)
    assert renewal.expiry(credential(Kind.CORP_TOKEN), repeated) == expires_at


@pytest.mark.parametrize(
    ("changes", "is_isolated", "may_mint"),
    [
        ({}, False, True),
        ({"value": None}, False, True),
        # A call of /cgi-bin/token less than 300 s ago: another one might end a token that readers are promised
        ({"at_risk_since": NOW - 299}, True, False),
        ({"at_risk_since": NOW - 300}, False, True),
        ({"minted_at": NOW - 299}, True, False),
        ({"at_risk_since": NOW}, True, False),  # also where that was in this second
        # WeChat refused the live token: no reader is promised it
        ({"refused_at": NOW - 5, "at_risk_since": NOW - 5}, True, True),
        # Another client invalidated one within a day
        ({"foreign_rotation_at": NOW - 86399}, True, True),
        ({"foreign_rotation_at": NOW - 86400}, False, True),
    ],
)
def test_when_a_token_comes_from_the_isolated_endpoint(
    changes: dict[str, object], is_isolated: bool, may_mint: bool
) -> None:
    known = credential(Kind.TOKEN, **changes)
    assert renewal.is_isolated(known, NOW) is is_isolated
    assert renewal.may_mint(known, NOW) is may_mint


@pytest.mark.parametrize("changes", [{}, {"value": None}, {"at_risk_since": NOW - 1000}])
@pytest.mark.parametrize(("lost_began_at", "is_isolated"), [(NOW - 299, True), (NOW - 300, False)])
def test_a_lost_renewals_late_call_ends_no_token(
    changes: dict[str, object], lost_began_at: int, is_isolated: bool
) -> None:
    # Given a lease that was never given back, whatever is known of the attempts before it
    known = credential(Kind.TOKEN, lease_until=lost_began_at + renewal.LEASE, **changes)
    # Then the next token comes from the endpoint where a call that is still under way cannot end it
    assert renewal.is_isolated(known, NOW) is is_isolated


@pytest.mark.parametrize(("refused_at", "until"), [(EXPIRES - 60, EXPIRES - 60), (EXPIRES + 8000, EXPIRES)])
def test_a_refused_token_is_not_usable_past_its_expiry(refused_at: int, until: int) -> None:
    # Given a token that is not served from a moment on: a forced refresh was begun, perhaps long after its expiry
    token = credential(Kind.STABLE_TOKEN, refused_at=refused_at)
    # Then a reader whose clock is behind that moment does not serve it either
    assert renewal.usable_until(token) == until


def test_an_isolated_token_is_due_by_the_rule_of_its_endpoint() -> None:
    # Given a `token` account whose next token came from stable_token
    grant = Grant("new", FULL_LIFE, FETCHED)
    # Then it is due in its last 270 s, when stable_token gives another
    assert renewal.next_due(credential(Kind.TOKEN), grant, isolated=True) == EXPIRES - 270


@pytest.mark.parametrize(
    ("changes", "since", "probed"),
    [
        ({}, 60, True),
        ({}, 59, False),  # WeChat may not accept it yet
        ({}, FULL_LIFE, False),
        ({"value": None}, 60, False),
        ({"refused_at": FETCHED + 61}, 70, False),
        ({"lease_until": FETCHED + 71}, 70, False),
    ],
)
def test_which_tokens_are_probed(changes: dict[str, object], since: int, probed: bool) -> None:
    assert renewal.is_to_be_probed(credential(Kind.TOKEN, **changes), FETCHED + since) is probed


@pytest.mark.parametrize("late", [-300, 0, 600, 90_000])
def test_a_new_tickets_life_counts_from_the_old_end_or_earlier(late: int) -> None:
    # Given a ticket, not the first, that is renewed before, at or after its end
    asked_at, known = EXPIRES + late, credential(Kind.TICKET, previous_fingerprint="0" * 16)
    # When WeChat gives another, which another client of this appid may have had since that end
    expires_at = renewal.expiry(known, Grant("new", 7200, asked_at))
    # Then it is not trusted for longer than that, except for a while
    assert expires_at == max(asked_at + 90, min(asked_at, EXPIRES) + 7200)


@pytest.mark.parametrize("late", [0, 60, 120])
def test_apps_that_share_a_ticket_never_count_it_longer(late: int) -> None:
    # Given two apps of a corp; the second gets their new ticket later than the first, time and again
    second = credential(Kind.CORP_TICKET, previous_fingerprint="0" * 16)
    for turn in range(1, 20):
        # When WeCom repeats the ticket to its end
        ends_at, asked_at = FETCHED + turn * FULL_LIFE, second.expires_at - 300
        while asked_at < ends_at:
            second = seen_again(second, Grant(str(second.value), FULL_LIFE, asked_at))
            asked_at = second.due_at
        second = seen_again(second, Grant(str(turn), FULL_LIFE, max(asked_at, ends_at + late)))
        # Then the next is never counted to live longer than it does, and not much shorter
        assert ends_at + FULL_LIFE - 90 <= second.expires_at <= ends_at + FULL_LIFE


def test_a_ticket_counted_short_costs_a_call_a_minute() -> None:
    # Given a ticket that is counted an hour short, because responses were lost for that time
    ticket = credential(Kind.CORP_TICKET, previous_fingerprint="0" * 16, expires_at=EXPIRES - 3600)
    # When WeCom goes on repeating it, and the guard asks each minute
    calls = 0
    for now in range(EXPIRES - 3600, EXPIRES, 60):
        assert now < ticket.expires_at or not calls  # Then it is served all the time
        if ticket.due_at <= now:
            ticket, calls = seen_again(ticket, Grant("old", FULL_LIFE, now)), calls + 1
    # And the hundred calls that WeCom takes in an hour are not used up
    assert calls <= 60


def seen_again(known: Credential, grant: Grant) -> Credential:
    """The credential with what WeChat has given, the same value or another."""
    expires_at, due_at = renewal.expiry(known, grant), renewal.next_due(known, grant)
    fetched_at = known.fetched_at if grant.value == known.value else grant.asked_at
    times = {"seen_at": grant.asked_at, "expires_at": expires_at, "due_at": due_at, "fetched_at": fetched_at}
    return replace(known, value=grant.value, **times)  # type: ignore[arg-type]
