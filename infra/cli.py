"""The command line `token-keeper`: runs the local stack, and operates a deployed or a local one.

Exit codes: 0 all well, 1 something needs a person (`status`, `doctor`), was not done (`refresh`) or the operator said no,
2 wrong usage or something stood in the way; standard error says what.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from infra import operations
from infra.doctor import Finding, Verdict, examine
from infra.operations import Json, OperatorError, Stack
from token_keeper.model import ACCESS_TOKEN, ACCOUNT_NAME

STATE_COLOURS = {"fresh": "green", "due": "cyan", "failing": "yellow", "expired": "red", "never_fetched": "red"}
WELL = ("fresh", "due")

VERDICT_COLOURS = {Verdict.OK: "green", Verdict.NOTE: "cyan", Verdict.WRONG: "red", Verdict.UNKNOWN: "yellow"}

WATCH_EVERY = 2
"""Seconds between two looks of `status --watch`; each costs one call of the API for every 50 accounts."""

LAST_PORT = 65533
"""The local stack takes three ports in a row, from this one at the latest."""

PIPE_WIDTH = 200
"""Columns where no terminal sets a width: a line for each credential."""


class _Commands(typer.core.TyperGroup):
    """Ends with one sentence where something stands in the way."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OperatorError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(2) from None


# A traceback with local variables could show a secret.
app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
accounts = typer.Typer(no_args_is_help=True)
app.add_typer(accounts, name="accounts", help="The accounts whose credentials are kept.")
consumers = typer.Typer(no_args_is_help=True)
app.add_typer(
    consumers, name="consumers", help="Who may ask in WeChat's own format, with a key instead of an AppSecret."
)


def _checked_name(account: str | None) -> str | None:
    if account is not None and not ACCOUNT_NAME.fullmatch(account):
        raise typer.BadParameter("use up to 64 lower-case letters, digits and dashes, no dash first")
    return account


AccountName = Annotated[
    str, typer.Argument(metavar="ACCOUNT", callback=_checked_name, help="The account's name in this stack.")
]
ConsumerName = Annotated[str, typer.Argument(metavar="NAME", callback=_checked_name, help="The consumer's name.")]


@app.callback()
def choose_stack(
    ctx: typer.Context,
    stack_name: Annotated[
        str, typer.Option(envvar="TOKEN_KEEPER_STACK", help="The CloudFormation stack.")
    ] = "wechat-token-keeper",
    region: Annotated[str | None, typer.Option(help="Its AWS region, where the environment names no other.")] = None,
    local: Annotated[bool, typer.Option("--local", help="Operate the stack that `token-keeper local` runs.")] = False,
    local_port: Annotated[
        int, typer.Option(envvar="TOKEN_KEEPER_LOCAL_PORT", min=0, max=LAST_PORT, hidden=True)
    ] = 3000,
) -> None:
    """Keep the access_token of WeChat accounts. The options here come before the command."""
    ctx.obj = partial(Stack, stack_name, region, local_port if local else None)


@app.command("local")
def run_local(
    port: Annotated[
        int,
        typer.Option(
            envvar="TOKEN_KEEPER_LOCAL_PORT",
            min=0,
            max=LAST_PORT,
            help="The API's; AWS and WeChat are on the next two. 0 takes three free ones.",
        ),
    ] = 3000,
    speed: Annotated[float, typer.Option(help="Seconds that pass in a second: 60 shows an hour in a minute.")] = 1,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen on, also for containers: Docker's bridge, or 127.0.0.1 with Docker Desktop; "
            "0.0.0.0 is the whole network. The API then asks for a key."
        ),
    ] = None,
    accounts: Annotated[
        Path | None, typer.Option(help='Accounts to simulate, in JSON: {"main": {"appid": …, "secret": …}, …}')
    ] = None,
    fault: Annotated[
        str | None,
        typer.Option(help="How the simulated WeChat fails: an errcode like 40164, or http, drop_after, slow …"),
    ] = None,
) -> None:
    """Run the whole system on this machine, with a simulated WeChat and nothing to set up. It keeps nothing at its end."""
    record = operations.real_record(os.environ)
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        os.environ.pop(name, None)  # of another AWS than the embedded one, which fails where there is no such profile
    from infra import local  # it brings an embedded AWS, which the other commands need not load

    local.run(port, speed, host, record, accounts, fault)


@accounts.command("add")
def add_account(
    ctx: typer.Context,
    account: AccountName,
    appid: Annotated[str | None, typer.Option(help="Of an Official Account or Mini Program.")] = None,
    corpid: Annotated[str | None, typer.Option(help="Of a WeCom corporation.")] = None,
    endpoint: Annotated[
        Literal["token", "stable_token"] | None,
        typer.Option(help="Where an appid's token is fetched; `token` by default."),
    ] = None,
    ticket: Annotated[
        list[str] | None, typer.Option(help="A ticket to keep too: jsapi or wx_card; for WeCom jsapi or agent_config.")
    ] = None,
) -> None:
    """Keep another account. Its secret is asked for, or read from standard input."""
    record = operations.new_record(appid, corpid, endpoint, ticket or [])
    stack: Stack = ctx.obj()
    stack.put_record(account, operations.with_secret(account, record, _read_secret()), overwrite=False)
    typer.echo(f"Added {account}: its token is fetched within seconds, see `token-keeper status {account}`.")


@accounts.command("list")
def list_accounts(ctx: typer.Context) -> None:
    """List the accounts that are kept."""
    stack: Stack = ctx.obj()
    document, _ = stack.health()
    table = _table("account", "appid / corpid", "endpoint", "tickets")
    for one in document["accounts"]:
        tickets = [name for credential in one["credentials"] if (name := credential["credential"]) != ACCESS_TOKEN]
        identity = one.get("appid") or one.get("corpid") or "–"
        table.add_row(one["account"], identity, one.get("endpoint", "–"), ", ".join(tickets) or "–")
    _print_table(table)


@accounts.command("remove")
def remove_account(
    ctx: typer.Context, account: AccountName, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False
) -> None:
    """Keep an account no longer. Its secret is deleted."""
    stack: Stack = ctx.obj()
    if not yes:
        typer.confirm(f"Remove {account} with its secret? Its readers get no token any more.", abort=True)
    stack.remove_record(account)
    typer.echo(f"Removed {account}: it is dropped within seconds.")


@accounts.command("set-secret")
def set_secret(ctx: typer.Context, account: AccountName) -> None:
    """Give an account a new secret, which is asked for, or read from standard input."""
    stack: Stack = ctx.obj()
    record = stack.record(account)
    stack.put_record(account, operations.with_secret(account, record, _read_secret()), overwrite=True)
    typer.echo(f"Changed the secret of {account}: it is checked within seconds, see `token-keeper status {account}`.")


@consumers.command("add")
def add_consumer(
    ctx: typer.Context,
    name: ConsumerName,
    accounts: Annotated[str, typer.Option(help="What it may read: names, or patterns with *, separated by commas.")],
    may_report: Annotated[
        bool, typer.Option("--may-report", help="Its force_refresh has a token checked, and replaced if it is dead.")
    ] = False,
) -> None:
    """Let another service ask. Standard output gets its key, this once."""
    stack: Stack = ctx.obj()
    key = stack.add_consumer(name, accounts.split(","), may_report=may_report)
    typer.echo(f"Added {name}. This is its key, to be used as the AppSecret; it is not shown again:", err=True)
    typer.echo(key)
    if not stack.has_compatible_api:
        note = "Note: nobody answers it. WeChat's format is switched off in this stack (WeChatCompatibleApi=disabled)."
        typer.echo(note, err=True)


@consumers.command("list")
def list_consumers(ctx: typer.Context) -> None:
    """List the consumers."""
    stack: Stack = ctx.obj()
    table = _table("consumer", "accounts", "may report")
    for consumer in stack.consumers():
        table.add_row(consumer.name, ", ".join(consumer.accounts), "yes" if consumer.may_report else "no")
    _print_table(table)


@consumers.command("revoke")
def revoke_consumer(ctx: typer.Context, name: ConsumerName) -> None:
    """Let a consumer ask no longer."""
    stack: Stack = ctx.obj()
    stack.revoke_consumer(name)
    typer.echo(f"Revoked {name}: within 15 seconds its key is refused. A token that it has got lives on.")


@app.command()
def status(
    ctx: typer.Context,
    account: Annotated[
        str | None, typer.Argument(metavar="ACCOUNT", callback=_checked_name, help="Only this account.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the API says.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it, until Ctrl-C.")] = False,
) -> None:
    """Show the health of every credential. Exits with 1 where one needs a person."""
    if watch and (as_json or not sys.stdout.isatty()):
        raise OperatorError("--watch draws on a terminal: leave it out in scripts.")
    stack: Stack = ctx.obj()
    if watch:
        _watch(stack, account)
        return
    document, now = stack.health(account)
    shown = [document] if account is not None else document["accounts"]
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
    elif not shown:
        typer.echo("No account is kept yet: add one with `token-keeper accounts add`.")
    else:
        _print_health(shown, now)
    if any(_needs_a_person(credential) for one in shown for credential in one["credentials"]):
        raise typer.Exit(1)


@app.command()
def refresh(
    ctx: typer.Context,
    account: AccountName,
    credential: Annotated[str, typer.Option(help="Or the type of a ticket.")] = ACCESS_TOKEN,
) -> None:
    """Replace a credential now, even one that is still good, and say what happened."""
    stack: Stack = ctx.obj()
    summary = stack.renew(account, credential)
    for one in summary["renewed"]:
        typer.echo(f"Renewed {one['account']} {one['credential']}: fingerprint {one['fingerprint']}.")
        typer.echo(
            f"It is promised until {one['promised_until']}, expires at {one['expires_at']} "
            f"and is renewed again at {one['renews_at']}."
        )
        if one["credential"] == ACCESS_TOKEN:
            typer.echo(
                "What was handed out before works for 5 minutes more (`token`), or not any more (`stable_token`)."
            )
    for one in summary["skipped"]:
        typer.echo(f"Skipped {one['account']} {one['credential']}: {one['reason']}.")
    for one in summary["failed"]:
        typer.echo(f"Failed {one['account']} {one['credential']}: {_cause(one)}.")
        typer.echo(f"  → {one['remedy']}\n  It is tried again at {one['next_attempt_at']}.")
    if summary["failed"] or summary["skipped"] or not summary["renewed"]:
        raise typer.Exit(1)


@app.command()
def doctor(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings for machines.")] = False,
) -> None:
    """Look at all that the stack lives on, and say what is wrong and what to do. Exits with 1 where something is."""
    findings = []
    for finding in examine(ctx.obj()):
        findings.append(finding)
        if not as_json:
            _print_finding(finding)
    amiss = sum(finding.verdict in (Verdict.WRONG, Verdict.UNKNOWN) for finding in findings)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        typer.echo(f"\n{amiss} of {len(findings)} need attention." if amiss else "\nAll is well.")
    if amiss:
        raise typer.Exit(1)


def _print_finding(finding: Finding) -> None:
    colour = VERDICT_COLOURS[finding.verdict]
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[{colour}]{finding.verdict:<8}[/][bold]{escape(finding.subject)}[/]: {escape(finding.says)}")
    if finding.remedy:
        console.print(f"        → {escape(finding.remedy)}")


def _watch(stack: Stack, account: str | None) -> None:
    """Show the health and look again every `WATCH_EVERY` seconds; what stands in the way is shown and tried again."""
    with Live(Text("…"), console=Console(highlight=False), auto_refresh=False, screen=True) as live:
        try:
            while True:
                try:
                    document, now = stack.health(account)
                except OperatorError as error:
                    live.update(Text(f"{error}\nIt is tried again; Ctrl-C ends it.", "red"), refresh=True)
                else:
                    shown = [document] if account is not None else document["accounts"]
                    at = f"{datetime.fromtimestamp(now).astimezone():%H:%M:%S}"
                    footer = Text(f"\n{stack.name} at {at}, every {WATCH_EVERY} s; Ctrl-C ends it.", "dim")
                    live.update(Group(*_health_shown(shown, now), footer), refresh=True)
                time.sleep(WATCH_EVERY)
        except KeyboardInterrupt:
            return


def _read_secret() -> str:
    """The secret from a hidden prompt, or standard input where that is no terminal: never from the command line."""
    if sys.stdin.isatty():
        return str(typer.prompt("Secret (is not shown)", hide_input=True))
    text = sys.stdin.buffer.read().decode(errors="replace")
    return text.removesuffix("\n").removesuffix("\r")


def _print_health(shown: list[Json], now: float) -> None:
    table, *remedies = _health_shown(shown, now)
    _print_table(table)
    for remedy in remedies:
        Console().print(remedy, highlight=False, soft_wrap=True)


def _health_shown(shown: list[Json], now: float) -> Iterator[RenderableType]:
    """The table of all credentials, and under it what to do about what has gone wrong."""
    table = _table("account", "credential", "state", "fingerprint", "expires", "renews", "failed")
    remedies = []
    for account in shown:
        for credential in account["credentials"]:
            state, error = credential["state"], credential["last_error"]
            colour = STATE_COLOURS[state]
            title = f"[bold]{account['account']} {credential['credential']}[/]"
            table.add_row(
                account["account"],
                credential["credential"],
                f"[{colour}]{state}[/]",
                credential["fingerprint"] or "–",
                _relative(credential["expires_at"], now),
                _relative(credential["renews_at"], now),
                str(credential["failures"]),
            )
            if error:
                when = _relative(error["at"], now)
                remedies.append(f"{title}: {escape(_cause(error))}, {when}\n  → {escape(error['remedy'])}")
            if foreign := credential.get("foreign_rotations"):
                killed = (
                    f"killed early by somebody else {foreign['count']} time(s), {_relative(foreign['last_at'], now)}"
                )
                remedies.append(f"{title}: {killed}\n  → {escape(foreign['remedy'])}")
    yield table
    yield from (Text.from_markup(f"\n{remedy}") for remedy in remedies)


def _needs_a_person(credential: Json) -> bool:
    # A live value can bear an error too: its account's changed record or secret is wrong.
    return credential["state"] not in WELL or credential["last_error"] is not None


def _cause(failure: Json) -> str:
    """A failure's class, and what WeChat said where it said something."""
    return " ".join(str(failure[part]) for part in ("class", "errcode", "errmsg") if failure[part] not in (None, ""))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        # Where the terminal is narrow, times take two lines and nothing is cut off.
        is_time = column in ("expires", "renews")
        table.add_column(column, no_wrap=not is_time, overflow="fold", min_width=len(column))
    return table


def _print_table(table: RenderableType) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(table)


def _relative(moment: str | None, now: float) -> str:
    """How far an RFC 3339 time is from now, in words."""
    if moment is None:
        return "–"
    seconds = round(datetime.fromisoformat(moment).timestamp() - now)
    minutes, rest = divmod(abs(seconds), 60)
    hours, days = minutes // 60, minutes // 1440
    if days:
        distance = f"{days} d {hours % 24} h"
    elif hours:
        distance = f"{hours} h {minutes % 60} min"
    else:
        distance = f"{minutes} min" if minutes else f"{rest} s"
    return f"in {distance}" if seconds >= 0 else f"{distance} ago"
