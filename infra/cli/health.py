"""`token-keeper token`, `status`, `refresh` and `doctor`: what the stack hands out, and how it is."""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli.program import AccountName, AsJson, app, checked_name, stack_of
from infra.cli.terminal import plain, say, to_json
from infra.errors import OperatorError
from token_keeper.model import ACCESS_TOKEN

if TYPE_CHECKING:
    from rich.console import RenderableType

    from infra.cli.aws_connection import Json
    from infra.cli.deployed_stack import DeployedStack
    from infra.cli.doctor import Finding

STATE_COLORS = {"fresh": "green", "due": "cyan", "failing": "yellow", "expired": "red", "never_fetched": "red"}
HEALTHY_STATES = ("fresh", "due")

VERDICT_COLORS = {"ok": "green", "note": "cyan", "wrong": "red", "unknown": "yellow"}

WATCH_EVERY = 2
"""Seconds between two looks of `status --watch`; each costs one call of the API for every 50 accounts."""

COLUMNS = ("account", "credential", "state", "fingerprint", "expires", "renews", "failed")


@app.command()
def token(ctx: typer.Context, account: AccountName, as_json: AsJson = False) -> None:
    """Print an account's access token, and nothing else. With --json, the API's response."""
    document = stack_of(ctx).api.token(account)
    say(to_json(document) if as_json else str(document["access_token"]))


@app.command()
def status(
    ctx: typer.Context,
    account: Annotated[
        str | None, typer.Argument(metavar="ACCOUNT", callback=checked_name, help="Only this account.")
    ] = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it, until Ctrl-C.")] = False,
) -> None:
    """Show the health of every credential. Exits with 1 where one needs an operator."""
    if watch and (as_json or not sys.stdout.isatty()):
        raise OperatorError("--watch draws on a terminal: leave it out in scripts.")
    stack = stack_of(ctx)
    if watch:
        _watch(stack, account)
        return
    document, now = stack.api.health(account)
    shown = [document] if account is not None else document["accounts"]
    if as_json:
        say(to_json(document))
    elif not shown:
        say("No account is kept yet: add one with `token-keeper accounts add`.")
    else:
        _print_health(shown, now)
    if any(_needs_an_operator(credential) for item in shown for credential in item["credentials"]):
        raise typer.Exit(1)


@app.command()
def refresh(
    ctx: typer.Context,
    account: AccountName,
    credential: Annotated[str, typer.Option(metavar="NAME", help="Or the type of a ticket.")] = ACCESS_TOKEN,
    as_json: AsJson = False,
) -> None:
    """Replace a credential now and say what happened.

    Even one that is still good is replaced. Exits with 1 where it was not done.
    """
    summary = stack_of(ctx).renew(account, credential)
    if as_json:
        say(to_json(summary))
    else:
        _say_summary(summary)
    if summary["failed"] or summary["skipped"] or not summary["renewed"]:
        raise typer.Exit(1)


def _say_summary(summary: "Json") -> None:
    for item in summary["renewed"]:
        say(f"Renewed {_name(item)}: fingerprint {plain(item['fingerprint'])}.")
        say(
            f"It is promised until {plain(item['promised_until'])}, expires at {plain(item['expires_at'])} "
            f"and is renewed again at {plain(item['renews_at'])}."
        )
        if item["credential"] == ACCESS_TOKEN:
            say("What was handed out before works for 5 minutes more (`token`), or no longer (`stable_token`).")
    for item in summary["skipped"]:
        say(f"Skipped {_name(item)}: {plain(item['reason'])}.")
    for item in summary["failed"]:
        say(f"Failed {_name(item)}: {cause(item)}.")
        say(f"  → {plain(item['remedy'])}\n  It is tried again at {plain(item['next_attempt_at'])}.")


def _name(outcome: "Json") -> str:
    return f"{plain(outcome['account'])} {plain(outcome['credential'])}"


@app.command()
def doctor(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Find what is wrong with the stack.

    It looks at all that the stack depends on, and says what to do. Exits with 1 where something is wrong.
    """
    from infra.cli.doctor import CheckStatus, examine

    findings = []
    for finding in examine(stack_of(ctx)):
        findings.append(finding)
        if not as_json:
            _print_finding(finding)
    problems = sum(finding.verdict in (CheckStatus.WRONG, CheckStatus.UNKNOWN) for finding in findings)
    if as_json:
        say(to_json([asdict(finding) for finding in findings]))
    else:
        say(f"\n{problems} of {len(findings)} need attention." if problems else "\nAll is well.")
    if problems:
        raise typer.Exit(1)


def _print_finding(finding: "Finding") -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    verdict = Text(f"{finding.verdict:<8}", VERDICT_COLORS[finding.verdict])
    console.print(Text.assemble(verdict, (plain(finding.subject), "bold"), f": {plain(finding.says)}"))
    if finding.remedy:
        console.print(Text(f"        → {plain(finding.remedy)}"))


def _watch(stack: "DeployedStack", account: str | None) -> None:
    """Show the health and look again every `WATCH_EVERY` seconds; what prevents that is shown, and tried again."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    with Live(Text("…"), console=console, auto_refresh=False, screen=True) as live:
        try:
            while True:
                try:
                    document, now = stack.api.health(account)
                except OperatorError as error:
                    live.update(Text(f"{error}\nRetrying. Press Ctrl-C to stop.", "red"), refresh=True)
                else:
                    shown = [document] if account is not None else document["accounts"]
                    at = f"{datetime.fromtimestamp(now).astimezone():%H:%M:%S}"
                    footer = Text(f"\n{stack.name} at {at}, every {WATCH_EVERY} s. Press Ctrl-C to stop.", "dim")
                    live.update(Group(*_health_shown(shown, now, console.width), footer), refresh=True)
                time.sleep(WATCH_EVERY)
        except KeyboardInterrupt:
            return


def _print_health(shown: list["Json"], now: float) -> None:
    from infra.cli.tables import console

    found = console()
    health, *remedies = _health_shown(shown, now, found.width)
    found.print(health)
    for remedy in remedies:
        found.print(remedy, soft_wrap=True)


def _health_shown(shown: list["Json"], now: float, width: int) -> Iterator["RenderableType"]:
    """The table of all credentials, and under it what to do about what has gone wrong."""
    from rich.console import Console
    from rich.measure import measure_renderables
    from rich.text import Text

    from infra.cli.tables import table

    rows, remedies = [], []
    for account in shown:
        for credential in account["credentials"]:
            state, error = credential["state"], credential["last_error"]
            rows.append(
                (
                    account["account"],
                    credential["credential"],
                    Text.assemble((plain(state), STATE_COLORS.get(state, ""))),
                    credential["fingerprint"] or "–",
                    _relative(credential["expires_at"], now),
                    _relative(credential["renews_at"], now),
                    str(credential["failures"]),
                )
            )
            title = plain(f"{account['account']} {credential['credential']}")
            if error:
                what = f": {cause(error)}, {_relative(error['at'], now)}\n  → {plain(error['remedy'])}"
                remedies.append(Text.assemble("\n", (title, "bold"), what))
            if foreign := credential.get("foreign_rotations"):
                what = (
                    f": invalidated by another client {foreign['count']} time(s), {_relative(foreign['last_at'], now)}"
                )
                remedies.append(Text.assemble("\n", (title, "bold"), what, f"\n  → {plain(foreign['remedy'])}"))
    whole = table(COLUMNS, rows)
    console = Console(width=10_000)
    fits = measure_renderables(console, console.options, [whole]).maximum <= width
    yield whole if fits else Text("\n").join(_two_lines(*row) for row in rows)
    yield from remedies


def _two_lines(account: str, credential: str, state: Any, fingerprint: str, *numbers: str) -> Any:
    """A credential where the terminal is too narrow for the table."""
    from rich.text import Text

    expires, renews, failed = numbers
    lived = "" if expires == "–" else f"expires {expires}, "
    return Text.assemble(
        f"{plain(account)} {plain(credential)}: ",
        state,
        f" {plain(fingerprint)}" if fingerprint != "–" else "",
        f"\n  {lived}renews {renews}, failed {failed}",
    )


def _needs_an_operator(credential: "Json") -> bool:
    # A live token can have an error too: its account's changed record or secret is wrong.
    return credential["state"] not in HEALTHY_STATES or credential["last_error"] is not None


def cause(failure: "Json") -> str:
    """A failure's class, and what WeChat said where it said something."""
    parts = (failure[part] for part in ("class", "errcode", "errmsg"))
    return " ".join(plain(part) for part in parts if part not in (None, ""))


def _relative(moment: str | None, now: float) -> str:
    """How far an RFC 3339 time is from now, in words."""
    return "–" if moment is None else distance(datetime.fromisoformat(moment).timestamp() - now)


def distance(seconds: float) -> str:
    """A span of time from now in words: in 3 min, 2 h 5 min ago."""
    whole = round(seconds)
    minutes, rest = divmod(abs(whole), 60)
    hours, days = minutes // 60, minutes // 1440
    if days:
        words = f"{days} d {hours % 24} h"
    elif hours:
        words = f"{hours} h {minutes % 60} min"
    else:
        words = f"{minutes} min" if minutes else f"{rest} s"
    return f"in {words}" if whole >= 0 else f"{words} ago"
