"""`token-keeper local`: the command that runs the whole system on this machine."""

import os
from pathlib import Path
from typing import Annotated

import typer

from infra.cli.program import LAST_LOCAL_PORT, app
from infra.errors import OperatorError


@app.command("local")
def run_local(
    port: Annotated[
        int,
        typer.Option(
            envvar="TOKEN_KEEPER_LOCAL_PORT",
            min=0,
            max=LAST_LOCAL_PORT,
            help="The API's; AWS and WeChat are on the next two. 0 takes three free ones.",
        ),
    ] = 3000,
    speed: Annotated[float, typer.Option(help="Clock speed: 60 simulates an hour per minute.")] = 1,
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
    from infra.cli.account_records import real_record

    record = real_record(os.environ)
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        os.environ.pop(name, None)  # of another AWS than the embedded one, which fails where there is no such profile
    try:
        from infra.local import local_stack  # it brings an embedded AWS, which the other commands need not load
    except ModuleNotFoundError as error:
        raise OperatorError(
            f"The local stack is not installed here ({error.name} is missing): run it with `uv run token-keeper local`."
        ) from None

    local_stack.run(port, speed, host, record, accounts, fault)
