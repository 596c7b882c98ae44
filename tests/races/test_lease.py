"""Leases, epochs and claims in the table, with many threads at one moment."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.races.race import RUNNERS, at_once
from tests.support.world import START
from token_keeper.model import ACCESS_TOKEN, Account, Credential, Failure, FailureClass, Grant, Kind
from token_keeper.refresh import alerts, lifecycle
from token_keeper.refresh.lifecycle import Attempt
from token_keeper.table import Table

pytestmark = pytest.mark.xdist_group("dynamodb-local")

APP_ID = "wx0"
LEASE = 60
ROUNDS = 4
FAILURE = Failure(FailureClass.TRANSIENT, -1, "system error", "Nothing to do.", START)


def read(table: Table, account: str = "main") -> Credential:
    """The account's token as the table holds it."""
    credential = table.credentials.get(account, ACCESS_TOKEN)
    assert credential is not None
    return credential


def enrolled(table: Table, account: str = "main") -> Credential:
    """A token without a value, due at `START`."""
    table.credentials.enrol(account, ACCESS_TOKEN, Kind.TOKEN, APP_ID, due_at=START)
    return read(table, account)


def try_lease(table: Table, seen: Credential, now: int = START) -> Credential | None:
    """Try for a lease, as an instance that saw the credential like this."""
    return table.credentials.change(seen, lifecycle.lease(seen, now))


def enrol_and_try(table: Table, account: str) -> Credential | None:
    """Enrol a token, then try for its lease."""
    return try_lease(table, enrolled(table, account))


def lease(table: Table, seen: Credential, now: int = START) -> Credential:
    """Take the lease, for which no other instance tries."""
    held = try_lease(table, seen, now)
    assert held is not None
    return held


def superseded_leases(table: Table, account: str, number: int) -> list[Credential]:
    """So many leases of one token, each taken when the one before it ended and was not given back."""
    leases = [enrolled(table, account)]
    for nth in range(number):
        leases.append(lease(table, leases[-1], START + nth * LEASE))
    return leases[1:]


def publish(table: Table, held: Credential, value: str = "new") -> Credential | None:
    """Publish a value that was asked for when the lease began."""
    asked_at = held.lease_until - LEASE
    attempt = Attempt(replace(held, at_risk_since=None), held, asked_at)
    return table.credentials.change(held, lifecycle.publish(attempt, Grant(value, 7200, asked_at), asked_at))


def fail(table: Table, held: Credential) -> Credential | None:
    """Record that no response came."""
    attempt = Attempt(held, held, held.lease_until - LEASE, outcome_unknown=True)
    return table.credentials.change(held, lifecycle.fail(attempt, FAILURE, makes_event=True))


def test_of_many_that_try_for_a_lease_exactly_one_gets_it(table: Table) -> None:
    # Given a token that is due
    seen = enrolled(table)
    for number in range(12):
        # When many that read it try for its lease at one moment, time and again, and the lease before was never given back
        now = START + number * LEASE
        taken = at_once(*[partial(try_lease, table, seen, now)] * RUNNERS)
        # Then one of them holds it, under the next epoch
        (held,) = [lease for lease in taken if lease]
        assert held == read(table)
        assert held.epoch == seen.epoch + 1
        assert held.lease_until == now + LEASE
        seen = held


def test_of_many_checks_of_a_live_token_exactly_one_begins(table: Table) -> None:
    for number in range(ROUNDS):
        # Given a live token
        seen = publish(table, lease(table, enrolled(table, f"a{number}")))
        assert seen is not None
        # When many want to check it at one moment
        begin = partial(table.credentials.change, seen, lifecycle.begin_check(seen, START + 100))
        # Then one of them does
        assert at_once(*[begin] * RUNNERS).count(None) == RUNNERS - 1


def test_of_many_that_find_a_token_dead_exactly_one_replaces_it(table: Table) -> None:
    for number in range(ROUNDS):
        # Given a live token
        seen = publish(table, lease(table, enrolled(table, f"a{number}")))
        assert seen is not None
        # When many find at one moment that WeChat refuses it
        refuse = partial(table.credentials.change, seen, lifecycle.refuse(seen, START + 100, foreign=True))
        # Then one of them has it replaced, it is counted once, and makes one event
        assert at_once(*[refuse] * RUNNERS).count(None) == RUNNERS - 1
        assert len(alerts.waiting(read(table, f"a{number}").unsent)) == 1
        assert read(table, f"a{number}").foreign_rotations == 1


class ReadsThenWrites:
    """A DynamoDB client whose condition is checked before the write, and not with it."""

    def __init__(self, dynamodb: Any) -> None:
        self._dynamodb = dynamodb

    def update_item(self, *, ConditionExpression: str, **update: Any) -> Any:  # noqa: N803 - boto3's names
        item = self._dynamodb.get_item(TableName=update["TableName"], Key=update["Key"], ConsistentRead=True)["Item"]
        seen = {name: update["ExpressionAttributeValues"].pop(f":seen_{name}", None) for name in ("epoch", "revision")}
        if any(item.get(name) != value for name, value in seen.items()):
            raise ClientError({"Error": {"Code": "ConditionalCheckFailedException"}}, "UpdateItem")
        return self._dynamodb.update_item(**update)


def test_without_its_condition_a_lease_has_several_holders(table: Table, dynamodb: Any, table_name: str) -> None:
    # Given a table that looks whether an instance holds the lease, and then takes it
    careless = Table(ReadsThenWrites(dynamodb), table_name)  # type: ignore[arg-type]
    # When many try for a lease at one moment, a few times
    holders = []
    for number in range(10):
        seen = enrolled(table, f"a{number}")
        taken = at_once(*[partial(try_lease, careless, seen)] * RUNNERS)
        holders.append(sum(lease is not None for lease in taken))
    # Then several hold the same lease: these threads do meet
    assert min(holders) >= 1
    assert max(holders) > 1


def test_of_many_superseded_renewals_only_the_last_publishes(table: Table) -> None:
    for number in range(ROUNDS):
        # Given many renewals of one token, each begun when the one before had taken too long
        leases = superseded_leases(table, f"a{number}", RUNNERS)
        # When all of them publish at one moment
        published = at_once(*[partial(publish, table, held, f"value{held.epoch}") for held in leases])
        # Then the last one's value is in the table, and all others know that theirs is not
        assert published == [None] * (RUNNERS - 1) + [read(table, f"a{number}")]
        assert published[-1] is not None
        assert published[-1].value == f"value{leases[-1].epoch}"


def test_a_failure_of_a_superseded_renewal_touches_nothing(table: Table) -> None:
    for number in range(ROUNDS):
        # Given many renewals of one token, each begun when the one before had taken too long
        *superseded, last = superseded_leases(table, f"a{number}", RUNNERS)
        # When the last publishes, and all others fail at that moment
        record_failures = [partial(fail, table, held) for held in superseded]
        recorded = at_once(partial(publish, table, last), *record_failures)
        # Then what it published is all there is
        assert recorded[1:] == [None] * (RUNNERS - 1)
        assert read(table, f"a{number}") == recorded[0]
        assert read(table, f"a{number}").failures == 0


def test_a_renewal_publishes_or_is_superseded_but_never_both(table: Table) -> None:
    for number in range(ROUNDS):
        # Given a lease that ends now
        held = lease(table, enrolled(table, f"a{number}"))
        # When its holder publishes at the moment in which many others try for the next one
        tries = [partial(try_lease, table, held, START + LEASE)] * (RUNNERS - 1)
        published, *taken = at_once(partial(publish, table, held), *tries)
        # Then either it has published and no renewal begins again, or one has begun and it has not published
        winners = [result for result in (published, *taken) if result]
        assert winners == [read(table, f"a{number}")]


def test_a_renewal_fails_or_is_superseded_but_never_both(table: Table) -> None:
    for number in range(ROUNDS):
        # Given a lease that ends now
        held = lease(table, enrolled(table, f"a{number}"))
        # When its holder records a failure at the moment in which many others try for the next one
        tries = [partial(try_lease, table, held, START + LEASE)] * (RUNNERS - 1)
        recorded, *taken = at_once(partial(fail, table, held), *tries)
        # Then either it is tried again when the failure says, or one has begun and knows nothing of it
        winners = [result for result in taken if result]
        assert bool(recorded) is not bool(winners)
        now = read(table, f"a{number}")
        assert now.failures == int(bool(recorded))
        assert not winners or winners == [now]


def test_a_renewal_during_its_accounts_deletion_leaves_nothing(table: Table) -> None:
    for number in range(ROUNDS):
        # Given a renewal under way
        held = lease(table, enrolled(table, f"a{number}"))
        # When the account is dropped at the moment in which the renewal ends
        drops = [partial(table.credentials.drop, held.account, held.name)] * (RUNNERS - 1)
        at_once(partial(publish, table, held), *drops)
        # Then nothing of it is left
        assert table.credentials.get(f"a{number}", ACCESS_TOKEN) is None


def test_many_that_enrol_a_credential_disturb_no_renewal_of_it(table: Table) -> None:
    for number in range(ROUNDS):
        name = f"a{number}"
        # Given a credential that is not kept yet
        # When many enrol it at one moment, and each tries for its lease
        taken = at_once(*[partial(enrol_and_try, table, name)] * RUNNERS)
        # Then one renews it, and can publish
        (held,) = [lease for lease in taken if lease]
        assert publish(table, held) == read(table, name)


def test_a_credential_is_made_due_only_in_the_state_it_was_read(table: Table) -> None:
    for number in range(ROUNDS):
        # Given a renewal under way
        held = lease(table, enrolled(table, f"a{number}"))
        # When many that have seen it make the credential due, at the moment in which it publishes
        made_due = [partial(table.credentials.change, held, lifecycle.reschedule(held, START + 1))] * (RUNNERS - 1)
        published, *_ = at_once(partial(publish, table, held), *made_due)
        # Then what it published is not made due by them
        assert published == read(table, f"a{number}")


def test_of_many_accounts_with_one_appid_one_has_the_claim(table: Table) -> None:
    for number in range(ROUNDS):
        # Given many accounts with one appid
        accounts = [Account(f"a{nth}", f"wx{number}", "secret", Kind.TOKEN) for nth in range(RUNNERS)]
        # When all claim it at one moment
        owners = at_once(*[partial(table.accounts.acquire_claim, account, now=START) for account in accounts])
        # Then all get the same owner, which is one of them
        (owner,) = set(owners)
        assert owner in {account.name for account in accounts}


def test_a_claim_that_is_released_goes_to_one_other(table: Table) -> None:
    for number in range(ROUNDS):
        # Given a claim that is held
        owner, *others = (Account(f"a{nth}", f"wx{number}", "secret", Kind.TOKEN) for nth in range(RUNNERS // 2 + 1))
        table.accounts.acquire_claim(owner, now=START)
        # When it is released several times, at the moment in which many others claim the same
        release = partial(table.accounts.release_claims, owner.name, owner.app_id, free_at=START)
        owners = at_once(
            *[release] * (RUNNERS // 2),
            *[partial(table.accounts.acquire_claim, account, now=START) for account in others],
        )
        # Then those that came too early get the old owner, all others the same new one
        new_owners = set(owners) - {None, owner.name}
        assert len(new_owners) <= 1
        assert table.accounts.acquire_claim(replace(owner, name="late"), now=START) == (
            new_owners.pop() if new_owners else "late"
        )
