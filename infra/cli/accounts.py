"""`token-keeper accounts`: which accounts are kept, and their records in Parameter Store."""

import sys
from collections.abc import Collection
from time import monotonic, sleep
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from infra.cli.program import AccountName, AsJson, app, group, stack_of
from infra.cli.terminal import complain, plain, say, to_json
from infra.errors import OperatorError
from token_keeper.model import ACCESS_TOKEN, rfc3339

if TYPE_CHECKING:
    from infra.cli.deployed_stack import DeployedStack

PATIENCE = 60
"""Seconds to wait for WeChat's verdict on a record."""

POLL_INTERVAL = 0.5
"""Seconds between two looks at the account's health; each costs one call of the API and one read of the table."""

AROUND_SECRETS = " \t\r\n\u00a0\u200b\u3000\ufeff"
"""What pasting puts around a secret, and no secret has."""

accounts = group()
app.add_typer(accounts, name="accounts", help="The accounts whose credentials are kept.")

Endpoint = Annotated[
    Literal["token", "stable_token"] | None,
    typer.Option(help="Where an appid's token is fetched; `token` by default."),
]
Tickets = Annotated[
    list[str] | None,
    typer.Option(
        "--tickets",
        "--ticket",
        metavar="TYPES",
        help="The tickets to keep too, with commas: jsapi, wx_card; for WeCom jsapi, agent_config; or `none`.",
    ),
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait for WeChat's verdict.")]


@accounts.command("add")
def add_account(
    ctx: typer.Context,
    account: AccountName,
    appid: Annotated[
        str | None, typer.Option(metavar="APPID", help="appid of an Official Account or Mini Program.")
    ] = None,
    corpid: Annotated[str | None, typer.Option(metavar="CORPID", help="corpid of a WeCom corporation.")] = None,
    endpoint: Endpoint = None,
    tickets: Tickets = None,
    no_wait: NoWait = False,
) -> None:
    """Keep another account, and say whether WeChat accepts it. Its secret is asked for, or read from standard input.

    Exits with 1 where WeChat refuses it, and with 2 where no verdict is known after 60 seconds.
    """
    from infra.cli import account_records

    record = account_records.new_record(appid, corpid, endpoint, account_records.listed_tickets(tickets or []))
    stack = stack_of(ctx)
    account_records.refuse_if_taken(stack, account, appid)
    record = account_records.with_secret(account, record, _read_secret())
    wait_for = None if no_wait else {ACCESS_TOKEN, *record["tickets"]}
    done, later = f"Added {account}", "its token is fetched"
    _store(stack, account, record, wait_for, done, later, "its token is kept", overwrite=False)


@accounts.command("list")
def list_accounts(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the accounts that are kept."""
    document, _ = stack_of(ctx).api.health()
    shown = [_shown(item) for item in document["accounts"]]
    if as_json:
        say(to_json({"accounts": shown}))
        return
    from infra.cli.tables import console, table

    rows = [
        (item["account"], item["identity"], item["endpoint"] or "–", ", ".join(item["tickets"]) or "–")
        for item in ({**item, "identity": item["appid"] or item["corpid"] or "–"} for item in shown)
    ]
    console().print(table(("account", "appid / corpid", "endpoint", "tickets"), rows))


@accounts.command("show")
def show_account(ctx: typer.Context, account: AccountName, as_json: AsJson = False) -> None:
    """Show an account's settings without its secret, and whether its record is the one in force."""
    from infra.cli import account_records
    from infra.errors import UnknownAccountError

    stack = stack_of(ctx)
    parameter, entry = account_records.parameter_of(stack, account), account_records.directory(stack).get(account)
    if parameter is None and entry is None:
        raise UnknownAccountError(
            f"There is no account '{account}': `token-keeper accounts list` shows those there are."
        )
    try:
        document, _ = stack.api.health(account)
    except UnknownAccountError:
        document = {"account": account, "credentials": []}
    record: dict[str, Any] = {
        "changed_at": None if parameter is None else rfc3339(int(parameter.changed_at)),
        "version": None if parameter is None else parameter.version,
        "version_in_force": None if entry is None else entry.version,
    }
    record["in_force"] = record["version"] is not None and record["version"] == record["version_in_force"]
    shown = {**_shown(document), "record": record}
    if as_json:
        say(to_json(shown))
        return
    for name in ("account", "appid", "corpid", "endpoint"):
        if shown[name]:
            say(f"{name + ':':<10}{plain(shown[name])}")
    say(f"{'tickets:':<10}{plain(', '.join(shown['tickets']) or '–')}")
    if record["in_force"]:
        say(f"{'record:':<10}of {record['changed_at']}, in force")
    elif parameter is None:
        say(f"{'record:':<10}removed from Parameter Store; the account is dropped within seconds")
    else:
        say(f"{'record:':<10}of {record['changed_at']}, not in force: `token-keeper status {account}` says why")


@accounts.command("set")
def set_account(
    ctx: typer.Context,
    account: AccountName,
    endpoint: Endpoint = None,
    tickets: Tickets = None,
    no_wait: NoWait = False,
) -> None:
    """Change an account's endpoint or its tickets. Its token is served all the while.

    Exits as `accounts add` does.
    """
    from infra.cli import account_records

    if endpoint is None and tickets is None:
        raise OperatorError("Nothing to change: give --endpoint, --tickets, or both.")
    stack = stack_of(ctx)
    record = account_records.read_record(stack, account)
    had = record.get("tickets") or []
    changed = account_records.changed_record(
        record, endpoint, None if tickets is None else account_records.listed_tickets(tickets)
    )
    account_records.refuse_invalid(account, changed)
    if changed == record:
        say(f"{account} has these settings already: nothing was changed.")
        return
    added = {ticket for ticket in changed.get("tickets", []) if ticket not in had}
    wait_for = None if no_wait else {ACCESS_TOKEN, *added}
    _store(stack, account, changed, wait_for, f"Changed {account}", "it is applied", "the change is in force")


@accounts.command("set-secret")
def set_secret(ctx: typer.Context, account: AccountName, no_wait: NoWait = False) -> None:
    """Give an account a new secret, which is asked for, or read from standard input; say whether WeChat accepts it.

    Exits as `accounts add` does.
    """
    from infra.cli import account_records

    stack = stack_of(ctx)
    record = account_records.read_record(stack, account)
    record = account_records.with_secret(account, record, _read_secret())
    wait_for = None if no_wait else {ACCESS_TOKEN}
    _store(stack, account, record, wait_for, f"Changed the secret of {account}", "it is checked", "it is in force")


@accounts.command("remove")
def remove_account(
    ctx: typer.Context, account: AccountName, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False
) -> None:
    """Keep an account no longer. Its secret is deleted."""
    from infra.cli import account_records

    stack = stack_of(ctx)
    if not yes:
        typer.confirm(f"Remove {account} with its secret? Its clients will no longer get a token.", abort=True)
    account_records.remove_record(stack, account)
    say(f"Removed {account}: it is dropped within seconds.")


def _store(
    stack: "DeployedStack",
    account: str,
    record: dict[str, Any],
    wait_for: Collection[str] | None,
    done: str,
    later: str,
    accepted: str,
    *,
    overwrite: bool = True,
) -> None:
    """Store a record. `wait_for`: the credentials whose verdict to wait for; with None say what happens `later`."""
    from infra.cli.account_records import put_record
    from infra.cli.judgement import errors_of

    before = {} if wait_for is None else errors_of(stack, account)
    put_record(stack, account, record, overwrite=overwrite)
    if wait_for is None:
        say(f"{done}: {later} within seconds, see `token-keeper status {account}`.")
    else:
        _await_verdict(stack, account, wait_for, before, done, accepted)


def _await_verdict(
    stack: "DeployedStack", account: str, credentials: Collection[str], before: dict[str, Any], done: str, accepted: str
) -> None:
    """Say what WeChat makes of the record that was stored just now; exits with 1 where it refuses it."""
    from infra.cli.account_records import parameter_of
    from infra.cli.judgement import judgement_now

    changed = parameter_of(stack, account)
    if changed is None:
        raise OperatorError(f"{done}, but another operator has removed it.")
    ends, failures, trouble = monotonic() + PATIENCE, {}, ""
    while True:
        try:
            judgement = judgement_now(stack, account, changed, credentials, before)
        except OperatorError as error:  # what was stored is stored: it is looked at again
            trouble = f" ({error})"
        else:
            if judgement.accepted:
                say(f"{done}: WeChat accepts it, and {accepted}.")
                return
            if judgement.accepted is False:
                say(f"{done}, but it is refused:")
                _say_failures(judgement.failures)
                raise typer.Exit(1)
            failures, trouble = judgement.failures, ""
        if monotonic() >= ends:
            _say_failures(failures)
            raise OperatorError(
                f"{done}, but WeChat's verdict is not known after {PATIENCE} s{trouble}: `token-keeper status {account}` shows "
                "it when it is."
            )
        sleep(POLL_INTERVAL)


def _say_failures(failures: dict[str, Any]) -> None:
    from infra.cli.health import cause

    for name, failure in sorted(failures.items()):
        say(f"{plain(name)}: {cause(failure)}\n  → {plain(failure['remedy'])}")


def _shown(account: dict[str, Any]) -> dict[str, Any]:
    """An account's settings as its health shows them."""
    tickets = [name for item in account["credentials"] if (name := item["credential"]) != ACCESS_TOKEN]
    return {**{name: account.get(name) for name in ("account", "appid", "corpid", "endpoint")}, "tickets": tickets}


def _read_secret() -> str:
    """The secret from a hidden prompt, or standard input where that is no terminal: never from the command line."""
    if sys.stdin.isatty():
        text = str(typer.prompt("Secret (is not shown)", hide_input=True))
        line = text
    else:
        text = sys.stdin.buffer.read().decode(errors="replace")
        line = text.removesuffix("\n").removesuffix("\r")
    secret = text.strip(AROUND_SECRETS)
    if secret != line:
        complain("Note: spaces or line ends around the secret were left out.")
    return secret
