"""The program around the commands: its options, how it ends, and what it says where something is in the way."""

import errno
import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from infra.cli.terminal import accept_any_encoding, complain, say
from infra.errors import OperatorError
from token_keeper.model import ACCOUNT_NAME

if TYPE_CHECKING:
    from infra.cli.deployed_stack import DeployedStack

STACK_OPTIONS = ("stack_name", "region", "local", "local_port")
"""Say which stack is meant, and may stand anywhere in a command."""

ACCOUNT_PATTERN = re.compile(r"[a-z0-9*][a-z0-9*-]{0,63}")

SOURCES = Path(__file__).parents[2]


class Program(typer.core.TyperGroup):
    """All commands. Ends with one sentence, and never with a traceback, which could show a secret."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the options of STACK_OPTIONS from wherever they stand."""
        options = {name: option for option in self.params if option.name in STACK_OPTIONS for name in option.opts}
        first, others = [], []
        remaining = iter(args)
        for argument in remaining:
            name, assigned, _ = argument.partition("=")
            if argument == "--":
                others += [argument, *remaining]
            elif name not in options:
                others.append(argument)
            elif assigned or getattr(options[name], "is_flag", False):
                first.append(argument)
            elif (value := next(remaining, None)) is not None:
                first += [argument, value]
            elif ctx.resilient_parsing:  # of a command that is being completed
                others.append(argument)
            else:
                ctx.fail(f"Option '{name}' requires an argument.")
        return super().parse_args(ctx, first + others)

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command line and exit."""
        accept_any_encoding()
        try:
            try:
                return super().main(*arguments, **options)
            finally:
                sys.stdout.flush()
        except OperatorError as error:
            complain(f"Error: {error}")
            sys.exit(error.exit_code)
        except OSError as error:
            if error.errno == errno.EPIPE:
                sys.exit(1)
            complain(_in_words(error))
        except Exception as error:  # noqa: BLE001 - a defect; its text may hold anything
            complain(_in_words(error))
        sys.exit(2)


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({error.filename})" if isinstance(error.filename, str) else ""
        return f"Error: the operating system says: {os.strerror(error.errno)}{where}."
    ours = [
        f"{Path(frame.f_code.co_filename).name}:{line}"
        for frame, line in walk_tb(error.__traceback__)
        if Path(frame.f_code.co_filename).is_relative_to(SOURCES)
        and "site-packages" not in Path(frame.f_code.co_filename).parts
    ]
    where = f" at {ours[-1]}" if ours else ""
    return (
        f"Error: an unexpected {type(error).__name__}{where} in token-keeper {version('wechat-token-keeper')}. That is a "
        "defect: please report it with this line and the command, without any secret."
    )


def group() -> typer.Typer:
    """A group of commands."""
    return typer.Typer(no_args_is_help=True, rich_markup_mode=None)


LAST_LOCAL_PORT = 65533
"""The local stack takes three ports in a row, from this one at the latest."""

app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"token-keeper {version('wechat-token-keeper')}")
        raise typer.Exit


@app.callback()
def choose_stack(
    ctx: typer.Context,
    stack_name: Annotated[
        str, typer.Option(envvar="TOKEN_KEEPER_STACK", help="The CloudFormation stack.")
    ] = "wechat-token-keeper",
    region: Annotated[
        str | None, typer.Option(help="Its AWS region, where AWS_REGION or the profile names no other.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Operate the stack that `token-keeper local` runs.")] = False,
    local_port: Annotated[
        int, typer.Option(envvar="TOKEN_KEEPER_LOCAL_PORT", show_envvar=True, hidden=True, min=1, max=LAST_LOCAL_PORT)
    ] = 3000,
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Keep the access_token of WeChat accounts.

    --stack-name, --region and --local may stand anywhere in a command.
    """
    if not stack_name:  # AWS would describe any stack
        raise typer.BadParameter("is empty", ctx, param_hint="'--stack-name'")

    def connect() -> "DeployedStack":
        # AWS's client takes time to load, which help and usage errors need not wait for.
        from infra.cli.deployed_stack import DeployedStack

        return DeployedStack(stack_name, region, local_port if local else None)

    ctx.obj = connect


def stack_of(ctx: typer.Context) -> "DeployedStack":
    """The stack that the command is for. Raises OperatorError where it is not found."""
    connect: Callable[[], DeployedStack] = ctx.obj
    return connect()


def checked_name(name: str | None) -> str | None:
    """A name of an account or a consumer, as typer's callback; refuses what can be none."""
    if name is not None and not ACCOUNT_NAME.fullmatch(name):
        raise typer.BadParameter("use up to 64 lower-case letters, digits and dashes, no dash first")
    return name


def account_patterns(listed: str) -> list[str]:
    """The names and patterns of accounts in a list with commas; refuses with OperatorError what is none."""
    patterns = list(dict.fromkeys(pattern.strip() for pattern in listed.split(",")))
    if wrong := [pattern for pattern in patterns if not ACCOUNT_PATTERN.fullmatch(pattern)]:
        raise OperatorError(f"'{wrong[0]}' is no account: use names like main, or patterns like mini-*, with commas.")
    return patterns


AccountName = Annotated[
    str, typer.Argument(metavar="ACCOUNT", callback=checked_name, help="The account's name in this stack.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
