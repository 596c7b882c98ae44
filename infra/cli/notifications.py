"""`token-keeper notifications`: the group robots of 企业微信, 飞书 and 钉钉 that write to people what happens."""

import sys
from typing import Annotated

import typer

from infra.cli.program import AsJson, account_patterns, app, checked_name, group, stack_of
from infra.cli.terminal import complain, plain, say, to_json
from infra.errors import OperatorError

PLATFORM_NAMES = {"wecom": "企业微信", "feishu": "飞书", "dingtalk": "钉钉"}

notifications = group()
app.add_typer(
    notifications,
    name="notifications",
    help="Group robots of 企业微信, 飞书 and 钉钉 that write when a credential fails, recovers or is invalidated.",
)

RobotName = Annotated[str, typer.Argument(metavar="NAME", callback=checked_name, help="The robot's name.")]


@notifications.command("add")
def add_robot(
    ctx: typer.Context,
    name: RobotName,
    accounts: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Whose messages it gets: names, or patterns with *, separated by commas."),
    ] = "*",
) -> None:
    """Tell a group, too. The robot's webhook address is asked for, or read from the first line of standard input.

    So is its signing secret (飞书: 签名校验, 钉钉: 加签), from the second line; leave it empty where there is none.
    """
    from infra.cli import group_robots
    from token_keeper.notify.robots import RobotError, parse_robot, record_of

    patterns = account_patterns(accounts)
    stack = stack_of(ctx)
    address, secret = _read_address()
    value = record_of(address, secret or None, list(patterns))
    reasons = []
    for origins in group_robots.robot_origins(stack):
        try:
            robot = parse_robot(name, value, origins)
        except RobotError as error:
            reasons.append(str(error))
        else:
            group_robots.put_robot(stack, name, value)
            say(f"Added {name}: {PLATFORM_NAMES[robot.platform]}, for {', '.join(patterns)}.")
            say(f"Have it write a test message: `token-keeper notifications test {name}`.")
            return
    raise OperatorError(f"{reasons[0][0].upper()}{reasons[0][1:]}.")


@notifications.command("list")
def list_robots(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the robots. Their addresses are not shown."""
    from infra.cli import group_robots
    from token_keeper.notify.robots import Robot

    robots = group_robots.robots(stack_of(ctx))
    shown = [
        {"name": name, "platform": robot.platform, "accounts": list(robot.accounts), "signed": robot.secret is not None}
        if isinstance(robot, Robot)
        else {"name": name, "error": str(robot)}
        for name, robot in robots.items()
    ]
    if as_json:
        say(to_json({"notifications": shown}))
        return
    from infra.cli.tables import console, table

    rows = [
        (
            name,
            PLATFORM_NAMES[robot.platform] if isinstance(robot, Robot) else "–",
            ", ".join(robot.accounts) if isinstance(robot, Robot) else f"unusable: {robot}",
            "yes" if isinstance(robot, Robot) and robot.secret else "no",
        )
        for name, robot in robots.items()
    ]
    console().print(table(("robot", "platform", "accounts", "signed"), rows))


@notifications.command("test")
def test_robot(ctx: typer.Context, name: RobotName) -> None:
    """Have a robot write a test message. Exits with 1 where it does not."""
    from infra.cli import group_robots

    response = group_robots.send_test_message(stack_of(ctx), name)
    if response["delivered"]:
        say(f"{name} has written a test message.")
        return
    complain(f"{name} has not: {plain(response['reason'])}.")
    raise typer.Exit(1)


@notifications.command("remove")
def remove_robot(ctx: typer.Context, name: RobotName) -> None:
    """Tell a group no longer."""
    from infra.cli import group_robots

    group_robots.remove_robot(stack_of(ctx), name)
    say(f"Removed {name}.")


def _read_address() -> tuple[str, str]:
    """The webhook address and the signing secret: never from the command line."""
    if sys.stdin.isatty():
        address = typer.prompt("Webhook address (is not shown)", hide_input=True)
        secret = typer.prompt(
            "Signing secret, if it has one (is not shown)", hide_input=True, default="", show_default=False
        )
    else:
        lines: list[str] = [*sys.stdin.read().splitlines(), "", ""]
        address, secret = lines[:2]
    return str(address).strip(), str(secret).strip()
