"""`token-keeper consumers`: who may ask in WeChat's own format."""

import sys
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli.program import AsJson, account_patterns, app, checked_name, group, stack_of
from infra.cli.terminal import complain, say, to_json
from token_keeper.model import rfc3339

if TYPE_CHECKING:
    from infra.cli.consumer_keys import ConsumerKey
    from infra.cli.deployed_stack import DeployedStack

consumers = group()
app.add_typer(
    consumers,
    name="consumers",
    help="Who may ask in WeChat's own format. A consumer's key is used instead of an AppSecret.",
)

ConsumerName = Annotated[str, typer.Argument(metavar="NAME", callback=checked_name, help="The consumer's name.")]


@consumers.command("add")
def add_consumer(
    ctx: typer.Context,
    name: ConsumerName,
    accounts: Annotated[
        str, typer.Option(metavar="NAMES", help="What it may read: names, or patterns with *, separated by commas.")
    ],
    may_report: Annotated[
        bool, typer.Option("--may-report", help="Its force_refresh has a token checked, and replaced if it is dead.")
    ] = False,
    cache_for: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS",
            min=1,
            max=7200,
            help="The most that it gets as expires_in, for SDKs that do not ask again before that.",
        ),
    ] = None,
) -> None:
    """Let another service ask. Standard output gets its key, this once."""
    from infra.cli import consumer_keys
    from infra.cli.account_records import directory

    patterns = account_patterns(accounts)
    stack = stack_of(ctx)
    unmatched = _unmatched(patterns, directory(stack))
    key = consumer_keys.add_consumer(stack, name, patterns, may_report=may_report, cache_for=cache_for)
    complain(f"Added {name}. Its key (use it as the AppSecret; it is shown only once):")
    _hand_out(stack, name, key, is_new=True)
    for pattern in unmatched:
        complain(f"Warning: {pattern} matches no account that is kept now; see `token-keeper accounts list`.")
    if not stack.has_compatible_api:
        complain(
            "Warning: this key cannot be used yet: the WeChat-compatible API is disabled in this stack "
            "(WeChatCompatibleApi=disabled)."
        )


@consumers.command("list")
def list_consumers(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the consumers."""
    from infra.cli import consumer_keys

    keys = consumer_keys.list_keys(stack_of(ctx))
    if as_json:
        say(to_json({"consumers": [_shown(key) for key in keys]}))
        return
    from infra.cli.tables import console, table

    rows = [
        (
            key.name,
            ", ".join(key.accounts),
            "yes" if key.may_report else "no",
            "–" if key.cache_for is None else f"{key.cache_for} s",
            "current" if key.rotated_at is None else f"old, replaced {rfc3339(key.rotated_at)}",
        )
        for key in keys
    ]
    console().print(table(("consumer", "accounts", "may report", "cache for", "key"), rows))


@consumers.command("rotate")
def rotate_consumer(ctx: typer.Context, name: ConsumerName) -> None:
    """Give a consumer a second key. Both work until `consumers revoke NAME --old`."""
    from infra.cli import consumer_keys

    stack = stack_of(ctx)
    key = consumer_keys.rotate_consumer(stack, name)
    complain(f"Rotated {name}. Its new key (use it as the AppSecret; it is shown only once):")
    _hand_out(stack, name, key, is_new=False)
    complain(f"The old key works too, until `token-keeper consumers revoke {name} --old`.")


@consumers.command("revoke")
def revoke_consumer(
    ctx: typer.Context,
    name: ConsumerName,
    old: Annotated[bool, typer.Option("--old", help="Only the key that `rotate` has replaced.")] = False,
) -> None:
    """Let a consumer ask no longer."""
    from infra.cli import consumer_keys

    consumer_keys.revoke_consumer(stack_of(ctx), name, old_only=old)
    what = f"the old key of {name}" if old else name
    say(f"Revoked {what}: it is refused within 15 seconds. Tokens that it has already stay valid until they expire.")


def _hand_out(stack: "DeployedStack", name: str, key: str, *, is_new: bool) -> None:
    """Write the key; where that fails, the key is lost, so a new consumer is taken back."""
    try:
        say(key)
        sys.stdout.flush()
    except OSError:
        if is_new:
            from infra.cli import consumer_keys

            consumer_keys.revoke_consumer(stack, name)
            complain(f"The key could not be written, so {name} was not added.")
        else:
            complain(f"The new key could not be written: revoke {name}, and add it again.")
        raise


def _unmatched(patterns: Collection[str], accounts: Collection[str]) -> list[str]:
    from fnmatch import fnmatchcase

    return [pattern for pattern in patterns if not any(fnmatchcase(account, pattern) for account in accounts)]


def _shown(key: "ConsumerKey") -> dict[str, Any]:
    return {
        "consumer": key.name,
        "accounts": list(key.accounts),
        "may_report": key.may_report,
        "cache_for": key.cache_for,
        "replaced_at": None if key.rotated_at is None else rfc3339(key.rotated_at),
    }
