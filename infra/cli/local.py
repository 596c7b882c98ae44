"""`token-keeper local`: the command that runs the whole system on this machine."""

import os
from typing import Annotated

import typer

from infra.cli.program import app


@app.command("local")
def run_local(
    port: Annotated[int, typer.Option(envvar="TOKEN_KEEPER_LOCAL_PORT", help="The API's; AWS is on the next.")] = 3000,
    speed: Annotated[float, typer.Option(help="Seconds that pass in a second: 60 shows an hour in a minute.")] = 1,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets containers in, and the network.")
    ] = "127.0.0.1",
) -> None:
    """Run the whole system on this machine, with a simulated WeChat and nothing to set up."""
    from infra import operations

    record = operations.real_record(os.environ)
    from infra import local  # it brings an embedded AWS, which the other commands need not load

    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        os.environ.pop(name, None)  # no AWS is involved, so a profile that does not exist must not matter
    local.run(port=port, speed=speed, host=host, record=record)
