"""The records of group robots in Parameter Store, and NotifyFunction, which writes with them."""

from infra.cli.aws_connection import Json
from infra.cli.deployed_stack import DeployedStack
from infra.errors import OperatorError
from token_keeper.notify.robots import Robot, RobotError, parse_robot


def robot_origins(stack: DeployedStack) -> list[dict[str, str]]:
    """Scheme and host of each platform's robots as NotifyFunction knows them; for a local stack also the simulated ones."""
    function = stack.notify_function
    if not function:
        raise OperatorError(f"The stack '{stack.name}' has no notifications: deploy this version first.")
    configuration = stack.aws.ask("lambda", "get_function_configuration", function, FunctionName=function)
    variables = configuration["Environment"]["Variables"]
    names = ("wecom", "feishu", "dingtalk")
    origins = [{name: variables[f"{name.upper()}_ROBOT_URL"] for name in names}]
    if stack.aws.local_port is not None:
        origins.append(dict.fromkeys(names, f"http://127.0.0.1:{stack.aws.local_port + 2}"))
    return origins


def put_robot(stack: DeployedStack, name: str, value: str) -> None:
    """Store a new robot's record, which holds its address."""
    stack.put_secret(f"robot {name}", f"{stack.notifications_path}/{name}", value)


def remove_robot(stack: DeployedStack, name: str) -> None:
    """Delete a robot's record."""
    stack.aws.ask("ssm", "delete_parameter", f"robot {name}", Name=f"{stack.notifications_path}/{name}")


def robots(stack: DeployedStack) -> dict[str, Robot | RobotError]:
    """Every robot, or what is wrong with its record, by name."""
    all_origins, path = robot_origins(stack), stack.notifications_path
    found = stack.aws.ask_all("ssm", "get_parameters_by_path", "Parameters", path, Path=path, WithDecryption=True)
    robots: dict[str, Robot | RobotError] = {}
    for item in found:
        name = item["Name"].rpartition("/")[2]
        for origins in all_origins:
            try:
                robots[name] = parse_robot(name, item["Value"], origins)
            except RobotError as error:
                robots.setdefault(name, error)
    return robots


def send_test_message(stack: DeployedStack, name: str) -> Json:
    """Have NotifyFunction write a test message: `delivered`, and the `reason` where it was not."""
    return stack.aws.invoke(stack.notify_function, {"test": name}, "delivered")
