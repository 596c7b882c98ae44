"""`token-keeper doctor`: looks at all that a stack depends on, and says what is wrong and what to do about it."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version

from infra.cli import account_records, consumer_keys, group_robots
from infra.cli.account_records import Kept, Parameter
from infra.cli.aws_connection import Json
from infra.cli.deployed_stack import DeployedStack
from infra.errors import OperatorError
from token_keeper.errors import KeeperError
from token_keeper.model import ACCOUNT_NAME
from token_keeper.refresh.errcodes import IP_NOT_ALLOWED
from token_keeper.untrusted import json_object

SCHEDULES = ("tick", "guard", "probe")

OVERDUE = {"guard": 5 * 60, "probe": 15 * 60}
"""Seconds after which a wake-up of RefreshFunction is missed: it should come every 1 or 2, and every 5 minutes."""

LOG_SEARCHED = 3600
"""Seconds of RefreshFunction's log that are searched for its last wake-ups."""

FEW_EXECUTIONS = 100
"""Concurrent executions of Lambda in the AWS account below which the stack has to share too few. A new account has 10."""

FAILED_HOURS = 24
"""Hours of NotifyFunction's log that are searched for robots that failed."""

ROBOT_FAILED = '{ $.message = "robot failed" }'

FIXED_ADDRESSES = {
    "managed": "EgressMode=managed, a NAT gateway, about 36.50 USD a month",
    "instance": "EgressMode=instance, a small server, about 7 USD a month, not yet run on real AWS",
}
"""What gives a fixed address, by `EgressMode`. The prices are counted by `python -m tests.reports.bill`."""


class CheckStatus(StrEnum):
    """What became of one look. `UNKNOWN`: it could not be made."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """What one look at `subject` showed, and what to do where that is called for."""

    subject: str
    verdict: CheckStatus
    says: str
    remedy: str | None = None


def examine(stack: DeployedStack) -> Iterator[Finding]:
    """Look at everything. What cannot be looked at is a finding too; nothing is raised."""
    looks: tuple[Callable[[DeployedStack], Iterator[Finding]], ...] = (
        _stack_itself,
        _code,
        _schedules,
        _wake_ups,
        _concurrency,
        _accounts,
        _consumers,
        _address,
        _dead_letters,
        _alarms,
        _notifications,
    )
    for look in looks:
        try:
            yield from look(stack)
        except OperatorError as error:
            yield Finding(look.__name__.strip("_").replace("_", " "), CheckStatus.UNKNOWN, str(error))
        except KeyError as missing:
            says = f"the stack, or what AWS says of it, lacks {missing}"
            yield Finding(look.__name__.strip("_").replace("_", " "), CheckStatus.UNKNOWN, says, "Deploy it again.")


def _stack_itself(stack: DeployedStack) -> Iterator[Finding]:
    if stack.status in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
        yield Finding(f"stack {stack.name}", CheckStatus.OK, stack.status)
    elif stack.status.endswith("_IN_PROGRESS"):
        yield Finding(f"stack {stack.name}", CheckStatus.NOTE, stack.status, "Look again when that has ended.")
    else:
        remedy = "Read the stack's events in CloudFormation for the first failure, fix it and redeploy."
        yield Finding(f"stack {stack.name}", CheckStatus.WRONG, stack.status, remedy)


def _code(stack: DeployedStack) -> Iterator[Finding]:
    function, ours = stack.outputs["RefreshFunctionName"], version("wechat-token-keeper")
    configuration = stack.aws.ask("lambda", "get_function_configuration", function, FunctionName=function)
    deployed = configuration.get("Environment", {}).get("Variables", {}).get("VERSION")
    if deployed == ours:
        yield Finding("code", CheckStatus.OK, f"version {ours}, as this command line")
    elif deployed is None or _in_order(deployed) < _in_order(ours):
        remedy = "Deploy it again: `uv run --group deploy sam build && uv run --group deploy sam deploy`."
        says = f"version {deployed or 'unknown'} is deployed, and this command line is {ours}"
        yield Finding("code", CheckStatus.WRONG, says, remedy)
    else:
        remedy = "Update this checkout (`git pull`) before you change the stack."
        yield Finding("code", CheckStatus.NOTE, f"version {deployed} is deployed; this command line is {ours}", remedy)


def _in_order(version_number: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version_number.split(".") if part.isdecimal())


def _schedules(stack: DeployedStack) -> Iterator[Finding]:
    for schedule in SCHEDULES:
        name = f"{stack.name}-{schedule}"
        try:
            found = stack.aws.ask("scheduler", "get_schedule", name, Name=name)
        except OperatorError as error:
            remedy = (
                "If it was deleted, nothing of it runs, and a deployment does not make it again: in CloudFormation's console, "
                f"create a drift-aware change set of the stack {stack.name} with its current template, and execute it."
            )
            yield Finding(f"schedule {name}", CheckStatus.UNKNOWN, str(error), remedy)
            continue
        if found["State"] == "ENABLED":
            yield Finding(f"schedule {name}", CheckStatus.OK, f"enabled, {found['ScheduleExpression']}")
        else:
            remedy = f"It was disabled: enable it in EventBridge Scheduler (schedule group default, {name})."
            yield Finding(f"schedule {name}", CheckStatus.WRONG, str(found["State"]).lower(), remedy)


def _wake_ups(stack: DeployedStack) -> Iterator[Finding]:
    """When the guard and the probe last ran, by RefreshFunction's log: the table would cost each of them a write."""
    if stack.is_local:  # it runs its schedules itself, and nothing keeps its log
        return
    function = stack.outputs["RefreshFunctionName"]
    configuration = stack.aws.ask("lambda", "get_function_configuration", function, FunctionName=function)
    log = configuration.get("LoggingConfig", {}).get("LogGroup") or f"/aws/lambda/{function}"
    now = time.time()
    for wake, overdue in OVERDUE.items():
        pattern = f'{{ $.message = "woken" && $.woken_by = "{wake}" }}'
        since = {"startTime": int((now - LOG_SEARCHED) * 1000), "filterPattern": pattern}
        found = stack.aws.ask_all("logs", "filter_log_events", "events", log, logGroupName=log, **since)
        ended_at = [event["timestamp"] / 1000 for event in found if _says(event["message"], wake)]
        if ended_at and now - max(ended_at) <= overdue:
            yield Finding(f"last {wake}", CheckStatus.OK, _ago(now - max(ended_at)))
            continue
        schedule = f"{stack.name}-{wake}"
        changed_at = stack.aws.ask("scheduler", "get_schedule", schedule, Name=schedule)[
            "LastModificationDate"
        ].timestamp()
        if now - changed_at <= overdue:
            says = f"has not run since its schedule was made or changed, {_ago(now - changed_at)}"
            minutes = math.ceil((changed_at + overdue - now) / 60)
            yield Finding(f"last {wake}", CheckStatus.NOTE, says, f"Look again in {minutes} minute(s).")
            continue
        remedy = f"See that the schedule {schedule} is enabled, and whether {function} fails (its log is {log})."
        not_found = f"has not run to its end in the last {LOG_SEARCHED // 60} minutes"
        yield Finding(f"last {wake}", CheckStatus.WRONG, _ago(now - max(ended_at)) if ended_at else not_found, remedy)


def _ago(seconds: float) -> str:
    return f"{max(0, round(seconds))} s ago" if seconds < 120 else f"{int(seconds // 60)} minutes ago"


def _says(line: str, wake: str) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and (entry.get("message"), entry.get("woken_by")) == ("woken", wake)


def _concurrency(stack: DeployedStack) -> Iterator[Finding]:
    if stack.is_local:
        return
    limit = stack.aws.ask("lambda", "get_account_settings", "the AWS account")["AccountLimit"]["ConcurrentExecutions"]
    says = f"{limit} concurrent executions for all functions of the AWS account"
    if limit < FEW_EXECUTIONS:
        remedy = (
            "Ask AWS for more (Service Quotas, Lambda, Concurrent executions; free of charge): when other functions use "
            "them up, nothing is renewed or handed out."
        )
        yield Finding("lambda quota", CheckStatus.NOTE, says, remedy)
    else:
        yield Finding("lambda quota", CheckStatus.OK, says)


def _accounts(stack: DeployedStack) -> Iterator[Finding]:
    # The directory is read first: a record that is applied in between is then not taken for one that is not.
    directory = account_records.directory(stack)
    stored = account_records.parameters_below_path(stack)
    document, _ = stack.api.health()
    kept = {item["account"]: item for item in document["accounts"]}
    if not stored and not kept:
        yield Finding("accounts", CheckStatus.NOTE, "none is kept", "Add one: `token-keeper accounts add`.")
    for name, parameter in sorted(stored.items()):
        yield _parameter(stack, name, parameter, directory.get(name))
    for name, account in kept.items():
        if name not in stored:
            remedy = "Its parameter is gone; the next main tick drops it. If this was not intended, add it again."
            yield Finding(f"account {name}", CheckStatus.WRONG, "kept, but there is no parameter", remedy)
        for credential in account["credentials"]:
            yield _credential(name, credential)


def _parameter(stack: DeployedStack, name: str, parameter: Parameter, kept: Kept | None) -> Finding:
    subject = f"parameter {name}"
    if "/" in name:
        remedy = (
            f"An account lies directly below {stack.outputs['AccountsPath']}: store it there under a name without a slash, and "
            "delete this one. If it belongs to another stack, give that an AccountsPath outside of this one."
        )
        return Finding(subject, CheckStatus.WRONG, "one level too deep to be an account", remedy)
    if not ACCOUNT_NAME.fullmatch(name):
        remedy = "An account's name is up to 64 lower-case letters, digits and dashes: store it under such a name."
        return Finding(subject, CheckStatus.WRONG, "not a valid account name", remedy)
    if parameter.kind != "SecureString":
        remedy = f"Its secret is stored unencrypted. `token-keeper accounts remove {name}`, add it again, and reset the secret at WeChat."
        return Finding(subject, CheckStatus.WRONG, f"a {parameter.kind}, not a SecureString", remedy)
    if kept is None or kept.version != parameter.version:
        says = "not in force yet" if kept is None else "changed, and the change is not in force"
        remedy = (
            f"A change is applied within seconds, else by the next main tick. `token-keeper status {name}` says what is wrong "
            f"with the record; if it says nothing, see the log of {stack.outputs['RefreshFunctionName']}."
        )
        return Finding(subject, CheckStatus.WRONG, says, remedy)
    return Finding(subject, CheckStatus.OK, "in force")


def _consumers(stack: DeployedStack) -> Iterator[Finding]:
    keys = consumer_keys.list_keys(stack)
    for key in keys:
        subject = f"consumer {key.name or '(without a name)'}"
        if not key.is_registered:
            remedy = (
                f"The command line has not made this key (SHA-256 {key.key_digest[:16]}…). If you do not know who did, treat "
                "the tokens that it could read as leaked, and delete its item from the table."
            )
            says = f"an unknown key may read {', '.join(key.accounts) or 'nothing'}"
            yield Finding(subject, CheckStatus.WRONG, says, remedy)
        elif key.rotated_at is not None:
            remedy = f"When its service uses the new one: `token-keeper consumers revoke {key.name} --old`."
            yield Finding(subject, CheckStatus.NOTE, "has an old key that still works", remedy)
    if all(key.is_registered for key in keys):
        says = f"{len(keys)} key(s), all made by the command line" if keys else "none"
        yield Finding("consumers", CheckStatus.OK, says)


def _credential(account: str, credential: Json) -> Finding:
    subject = f"{account} {credential['credential']}"
    state, error, foreign = credential["state"], credential["last_error"], credential["foreign_rotations"]
    if error:
        code = "" if error["errcode"] is None else f" {error['errcode']}"
        return Finding(
            subject, CheckStatus.WRONG, f"{state}, {error['class']}{code}: {error['errmsg']}", error["remedy"]
        )
    if state in ("never_fetched", "expired"):
        remedy = f"`token-keeper refresh {account}` tries now and says what prevents it."
        return Finding(subject, CheckStatus.WRONG, state, remedy)
    if foreign:
        return Finding(
            subject,
            CheckStatus.NOTE,
            f"{state}; invalidated by another client {foreign['count']} time(s)",
            foreign["remedy"],
        )
    return Finding(subject, CheckStatus.OK, state)


def _address(stack: DeployedStack) -> Iterator[Finding]:
    mode = stack.parameters.get("EgressMode", "none")
    if mode in FIXED_ADDRESSES:
        own = stack.parameters.get("EgressAllocationId")
        address = stack.outputs.get("EgressIp") or f"the Elastic IP address {own}"
        says = f"calls to WeChat come from {address} ({FIXED_ADDRESSES[mode]})"
        yield Finding("address", CheckStatus.OK, says, f"Every account's IP whitelist (IP白名单) must name {address}.")
    elif mode == "existing":
        remedy = "Put the address of their NAT gateway on every account's IP whitelist (IP白名单)."
        yield Finding("address", CheckStatus.NOTE, "calls to WeChat leave through your own subnets", remedy)
    else:
        document, _ = stack.api.health()
        errors = [each["last_error"] for item in document["accounts"] for each in item["credentials"]]
        refused = any(error and error["errcode"] in IP_NOT_ALLOWED for error in errors)
        remedy = f"Where WeChat wants an IP whitelist (公众号, 企业微信), deploy with {', or '.join(FIXED_ADDRESSES.values())}."
        verdict = CheckStatus.WRONG if refused else CheckStatus.NOTE
        yield Finding("address", verdict, "calls to WeChat come from changing addresses", remedy)


def _dead_letters(stack: DeployedStack) -> Iterator[Finding]:
    url = stack.outputs["DeadLetterQueueUrl"]
    count = "ApproximateNumberOfMessages"
    response = stack.aws.ask("sqs", "get_queue_attributes", url, QueueUrl=url, AttributeNames=[count])
    if waiting := int(response["Attributes"][count]):
        remedy = f"Read their attributes for the reason, correct that, then `aws sqs purge-queue --queue-url {url}`."
        yield Finding("dead letters", CheckStatus.WRONG, f"{waiting} event(s) could not be handled", remedy)
    else:
        yield Finding("dead letters", CheckStatus.OK, "none")


def _alarms(stack: DeployedStack) -> Iterator[Finding]:
    topic = stack.outputs["AlarmTopicArn"]
    subscriptions = stack.aws.ask_all("sns", "list_subscriptions_by_topic", "Subscriptions", topic, TopicArn=topic)
    confirmed = [item for item in subscriptions if item["SubscriptionArn"].startswith("arn:")]
    for item in subscriptions:
        if item not in confirmed:
            remedy = (
                "Open the mail from AWS Notifications and confirm; if it is lost or older than 3 days, deploy again."
            )
            yield Finding("alarm mail", CheckStatus.WRONG, f"{item['Endpoint']} has not confirmed", remedy)
    if confirmed:
        yield Finding("alarm mail", CheckStatus.OK, f"{len(confirmed)} confirmed subscription(s)")
    elif not subscriptions:
        remedy = "Deploy with AlarmEmail=…, or subscribe something else to the topic."
        yield Finding("alarm mail", CheckStatus.NOTE, "no subscriber", remedy)
    arguments = {"AlarmNamePrefix": f"{stack.name}-", "StateValue": "ALARM"}
    firing = stack.aws.ask_all("cloudwatch", "describe_alarms", "MetricAlarms", "its alarms", **arguments)
    for alarm in firing:
        yield Finding(f"alarm {alarm['AlarmName']}", CheckStatus.WRONG, "in ALARM state", alarm.get("AlarmDescription"))
    if not firing:
        yield Finding("alarms", CheckStatus.OK, "none firing")


def _notifications(stack: DeployedStack) -> Iterator[Finding]:
    if "NotifyFunctionName" not in stack.outputs:  # of the release before, which `_code` reports
        return
    robots = group_robots.robots(stack)
    for name, robot in robots.items():
        if isinstance(robot, KeeperError):
            remedy = f"`token-keeper notifications remove {name}`, and add it again."
            yield Finding(f"robot {name}", CheckStatus.WRONG, f"unusable: {robot}", remedy)
    if not robots:
        remedy = "Where a team reads 企业微信, 飞书 or 钉钉: `token-keeper notifications add NAME`."
        yield Finding("notifications", CheckStatus.NOTE, "no group robot", remedy)
        return
    failed = {} if stack.is_local else _failed_robots(stack)
    for name in sorted(failed.keys() & robots.keys()):
        remedy = f"`token-keeper notifications test {name}` says whether it works now; is the robot still in its group?"
        what = f"did not write a message in the last {FAILED_HOURS} hours: {failed[name]}"
        yield Finding(f"robot {name}", CheckStatus.WRONG, what, remedy)
    if not failed.keys() & robots.keys():
        yield Finding("notifications", CheckStatus.OK, f"{len(robots)} group robot(s)")


def _failed_robots(stack: DeployedStack) -> dict[str, str]:
    """The robots that NotifyFunction's log says have failed lately, and why they did last."""
    log = f"/aws/lambda/{stack.name}-notify"
    since = {"startTime": int((time.time() - FAILED_HOURS * 3600) * 1000), "filterPattern": ROBOT_FAILED}
    events = stack.aws.ask_all("logs", "filter_log_events", "events", log, logGroupName=log, **since)
    entries = [json_object(event["message"]) or {} for event in events]
    return {
        str(entry.get("robot")): str(entry.get("reason")) for entry in entries if entry.get("message") == "robot failed"
    }
