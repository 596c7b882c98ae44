"""The rules of renewal, as pure functions of a credential and the time: when it is due, how long a reader may be
promised its value, and what follows a failure.

    fetched                                       tick renews    due       expires
    |------------------- 7200 s ------------------|--120--|------540 s-----|          `token`
    |                                             |--------300 s overlap-----|        the old value still works
    |<------------- promised to readers ---------------------------------->|  - 5 s

All times are UTC epoch seconds.
"""

from dataclasses import dataclass
from enum import StrEnum

from token_keeper import budget
from token_keeper.model import Credential, DueCredential, Failure, FailureClass, Grant, Kind

LEASE = 60
"""Lease duration in seconds. Two abandoned leases, each plus one guard interval, fit into the 300 s for which WeChat still
accepts the token before."""

MARGIN = 5
"""Seconds kept back from every promise: the instances' clocks may differ by this much."""

CACHE_FOR = 60
"""The longest a client should keep a value before it asks again: WeChat's own advice is about a minute."""

UNKNOWN_AGE_LIFE = 300
"""Validity assumed, in seconds, for the first ticket of an account: WeChat may have created it for another client long ago."""

REPEATED_LIFE = 90
"""Validity assumed, in seconds, for what WeChat has just repeated at or after its end as counted here: it may end at any moment.
It is asked for each minute then, 60 times an hour; WeCom takes 100 calls an hour for an app's tickets."""

MIN_AGE_TO_CHECK = 60
"""Seconds. WeChat may refuse a token for some seconds after it was handed out, so a younger one is never declared dead."""

SHIELD = 86400
"""Seconds for which a token is fetched from the isolated endpoint after another client has invalidated one."""


@dataclass(frozen=True)
class Rule:
    """How one kind of credential is renewed. Seconds, from WeChat's documentation of each endpoint."""

    due_before: int
    """It is due this long before it expires."""
    look_ahead: int
    """The main tick renews it this much before it is due, so that the tick and not the guard does the regular work."""
    overlap: int
    """How long the old value works after a rotation; 0 where WeChat promises nothing."""
    each_call_mints: bool
    """Whether a call inside the validity may mint a successor, so that a lost response puts the value at risk."""
    recheck_after: int | None
    """When the same value came back although it was due: ask again after this long; None: when it expires."""
    counts_down: bool = False
    """Whether `expires_in` counts down when a value is repeated; otherwise its life counts from when it was first seen."""


RULES = dict.fromkeys(Kind, Rule(300, look_ahead=0, overlap=0, each_call_mints=True, recheck_after=None)) | {
    Kind.TOKEN: Rule(540, look_ahead=120, overlap=300, each_call_mints=True, recheck_after=60, counts_down=True),
    Kind.STABLE_TOKEN: Rule(270, look_ahead=0, overlap=300, each_call_mints=False, recheck_after=60, counts_down=True),
}
"""WeCom's tokens and all tickets have one rule."""


class State(StrEnum):
    """The health of a credential in a word."""

    FRESH = "fresh"
    DUE = "due"
    FAILING = "failing"
    EXPIRED = "expired"
    NEVER_FETCHED = "never_fetched"


def expiry(credential: Credential, grant: Grant) -> int:
    """When the granted value expires, at the earliest.

    A new value may be older than it looks: WeChat may have created it for an earlier request whose response was lost, or for
    another client of this appid, or another app of the corp, as soon as the one before had ended. That was after its end as counted
    here, and after it was seen for the last time. So no life is ever counted too long, however late a value is seen.
    """
    asked_at, claimed = grant.asked_at, grant.asked_at + grant.expires_in
    if RULES[credential.kind].counts_down:
        return claimed
    is_first = credential.kind in (Kind.TICKET, Kind.CORP_TICKET) and credential.previous_fingerprint is None
    trusted = UNKNOWN_AGE_LIFE if is_first else REPEATED_LIFE
    trusted_until = asked_at + min(trusted, grant.expires_in)
    if credential.value is None:
        return trusted_until if is_first else claimed
    if grant.value == credential.value:
        if not is_first:
            return min(max(credential.expires_at, trusted_until), claimed)
        ends_at = credential.fetched_at + grant.expires_in
        return min(ends_at, trusted_until) if asked_at < ends_at else trusted_until
    seen_at = credential.seen_at or credential.expires_at - trusted  # an item of the release before does not say
    ended_at = seen_at if credential.expires_at <= seen_at + trusted else credential.expires_at
    created_at = min(asked_at, ended_at, credential.at_risk_since or asked_at)
    return max(created_at + grant.expires_in, trusted_until)


def next_due(credential: Credential, grant: Grant, *, isolated: bool = False) -> int:
    """When a just granted value is to be renewed; `isolated`: it came from `stable_token`, whatever the account's endpoint.

    No value is due before half its lifetime, so that a short-lived one is never due at once. A value that came back
    unchanged although it was due is asked for again as its rule says.
    """
    rule = RULES[Kind.STABLE_TOKEN if isolated else credential.kind]
    expires_at = expiry(credential, grant)
    left = expires_at - grant.asked_at
    is_prolonged = not rule.counts_down and expires_at > credential.expires_at
    if grant.value != credential.value or is_prolonged:
        return expires_at - min(rule.due_before, left // 2)
    if left > rule.due_before:
        return expires_at - rule.due_before
    return expires_at if rule.recheck_after is None else min(expires_at, grant.asked_at + rule.recheck_after)


def last_mint(credential: Credential) -> int:
    """The last time at which `/cgi-bin/token` may have minted a token."""
    return max(credential.minted_at, credential.at_risk_since or 0)


def may_mint(credential: Credential, now: int) -> bool:
    """Whether `/cgi-bin/token` may be called without ending a token that readers are promised.

    WeChat accepts the token before the newest for 300 s, and perhaps none that is older. A refused token was ended by another
    client's call, which has ended those before it too.
    """
    is_promised = credential.value is not None and credential.refused_at is None
    return not is_promised or now >= last_mint(credential) + RULES[Kind.TOKEN].overlap


def is_isolated(credential: Credential, now: int) -> bool:
    """Whether a `token` account's next token comes from `stable_token`, which never touches what `/cgi-bin/token` gave.

    It does where `/cgi-bin/token` might end a token that readers are promised, where WeChat refused the live token, and for
    a day after another client has invalidated one. And it does for 300 s after a lease began that was never given back: its
    renewer's call may reach WeChat after this one's, and would end what this one got from `/cgi-bin/token`.
    `credential`: as it was before the lease of this renewal.
    """
    is_overtaking = now < credential.lease_until - LEASE + RULES[Kind.TOKEN].overlap
    is_contested = shield_end(credential, now) is not None
    return is_overtaking or is_contested or credential.refused_at is not None or not may_mint(credential, now)


def due_for_tick(due: DueCredential, now: int) -> bool:
    """Whether the main tick renews it at `now`: it looks ahead, but not to the next attempt after a failure."""
    return due.due_at <= now + (0 if due.failures else RULES[due.kind].look_ahead)


def is_still_due(due: DueCredential, credential: Credential, now: int) -> bool:
    """Whether what the index listed as due, which may lag and look ahead, is so in the table itself."""
    return credential.due_at <= now or (credential.due_at == due.due_at and not credential.failures)


def usable_until(credential: Credential) -> int:
    """When the value stops being usable for sure: its expiry, or the end of the overlap with a possible successor.

    Where WeChat promises no overlap the old value usually lives on, so it is still served, a second at a time.
    """
    rule = RULES[credential.kind]
    if credential.value is None:
        return 0
    if credential.refused_at is not None:
        return min(credential.expires_at, credential.refused_at)  # a forced refresh may begin long after the expiry
    if rule.each_call_mints and rule.overlap and credential.at_risk_since is not None:
        return min(credential.expires_at, credential.at_risk_since + rule.overlap)
    return credential.expires_at


def promised_until(credential: Credential, read_at: int) -> int:
    """When the promise of a value that was read from the table at `read_at` ends.

    No rotation had begun when it was read, or `at_risk_since` would say so. The next one is planned for `due_at`; it can
    begin at once where that has passed, and after a failure, because a corrected record is tried at once.
    """
    rule = RULES[credential.kind]
    if rule.each_call_mints and credential.at_risk_since is not None:
        rotates_at = credential.at_risk_since
    elif credential.failures:
        rotates_at = read_at
    else:
        rotates_at = max(read_at, credential.due_at - rule.look_ahead)
    return min(credential.expires_at, rotates_at + rule.overlap) - MARGIN


def is_too_young_to_check(credential: Credential, now: int) -> bool:
    """Whether a refusal says nothing yet: WeChat may not accept the token so soon after it was handed out."""
    return now - credential.fetched_at < MIN_AGE_TO_CHECK


def is_to_be_probed(token: Credential, now: int) -> bool:
    """Whether the probe asks about the token: it is served now, no renewal is under way, and a refusal would say something."""
    is_served = token.value is not None and token.lease_until <= now < usable_until(token)
    return is_served and not is_too_young_to_check(token, now)


def is_checked(credential: Credential, now: int) -> bool:
    """Whether the token counts as working without a further check: WeChat has just accepted it, or it is too young."""
    return now - credential.checked_at < budget.CHECK_SERVES or is_too_young_to_check(credential, now)


def shield_end(credential: Credential, now: int) -> int | None:
    """Until when renewals of a contested `token` account use the isolated endpoint; None where they do not."""
    ends_at = credential.foreign_rotation_at + SHIELD
    return ends_at if credential.kind is Kind.TOKEN and now < ends_at else None


def promise(credential: Credential, read_at: int, now: int) -> int | None:
    """Whole seconds a reader may be promised at `now`, at least 1; None where there is no usable value."""
    if now >= usable_until(credential):
        return None
    return max(1, promised_until(credential, read_at) - now)


def state(credential: Credential, now: int) -> State:
    """The health of a credential at `now`."""
    if credential.value is None:
        return State.NEVER_FETCHED
    if now >= usable_until(credential):
        return State.EXPIRED
    if credential.last_error:
        return State.FAILING
    return State.DUE if now >= credential.due_at or now < credential.lease_until else State.FRESH


RETRY = 55
"""Seconds between attempts that may succeed by themselves: the next guard makes the next one, though it may come a moment earlier
in its minute than the last, and its clock may be behind."""

SLOW_RETRY = 300
"""Seconds between attempts that can only succeed after an operator has acted: 12 an hour, against the 2000 failing calls an
hour after which WeCom blocks the caller, and soon enough that an operator who has just acted need not wait long."""

QUOTA_RETRY = 1800
"""Seconds between attempts while WeChat says that the day's calls are used up; an operator can clear the quota any time."""

AFTER_MIDNIGHT = 30
"""Seconds after WeChat's midnight at which a used-up quota is tried again."""

QUICK_FAILURES = 5
"""How often an unknown error is taken for a transient one before it is taken for a matter of configuration."""

CONFIRMATION_WAITS = {89506: 86400, 89507: 3600}
"""Seconds WeChat blocks an IP address after an administrator refused it (89507), or refused it twice (89506)."""


def retry_after(failure: Failure, failures: int) -> int:
    """Seconds until the next attempt after the given failure, the `failures`-th in a row."""
    match failure.failure_class:
        case FailureClass.TRANSIENT | FailureClass.CREDENTIAL:
            return RETRY
        case FailureClass.QUOTA if failure.errcode is not None:
            return min(QUOTA_RETRY, budget.seconds_to_midnight(failure.at) + AFTER_MIDNIGHT)
        case FailureClass.CONFIRMATION:
            return CONFIRMATION_WAITS.get(failure.errcode or 0, SLOW_RETRY)
        case FailureClass.UNKNOWN if failures <= QUICK_FAILURES:
            return RETRY
        case _:
            return SLOW_RETRY
