"""`token-keeper doctor`: looks at all that a stack lives on, and says what is wrong and what to do about it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from infra.operations import Json, OperatorError, Stack
from token_keeper.model import ACCOUNT_NAME
from token_keeper.wechat import IP_NOT_ALLOWED

SCHEDULES = ("tick", "guard")

FIXED_ADDRESSES = {
    "managed": "EgressMode=managed, a NAT gateway, about 36.50 USD a month",
    "instance": "EgressMode=instance, a small server, about 7 USD a month, not yet run on real AWS",
}
"""What gives a fixed address, by `EgressMode`. The prices are counted by `python -m tests.bill`."""


class Verdict(StrEnum):
    """What became of one look. `UNKNOWN`: it could not be made."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """What one look at `subject` showed, and what to do where that is called for."""

    subject: str
    verdict: Verdict
    says: str
    remedy: str | None = None


def examine(stack: Stack) -> Iterator[Finding]:
    """Look at everything. What cannot be looked at is a finding too; nothing is raised."""
    looks: tuple[Callable[[Stack], Iterator[Finding]], ...] = (
        _stack_itself,
        _schedules,
        _accounts,
        _address,
        _dead_letters,
        _alarms,
    )
    for look in looks:
        try:
            yield from look(stack)
        except OperatorError as error:
            yield Finding(look.__name__.strip("_").replace("_", " "), Verdict.UNKNOWN, str(error))


def _stack_itself(stack: Stack) -> Iterator[Finding]:
    if stack.status in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
        yield Finding(f"stack {stack.name}", Verdict.OK, stack.status)
    elif stack.status.endswith("_IN_PROGRESS"):
        yield Finding(f"stack {stack.name}", Verdict.NOTE, stack.status, "Look again when that has ended.")
    else:
        remedy = "Read the stack's events in CloudFormation for the first failure, mend it, and deploy again."
        yield Finding(f"stack {stack.name}", Verdict.WRONG, stack.status, remedy)


def _schedules(stack: Stack) -> Iterator[Finding]:
    for schedule in SCHEDULES:
        name = f"{stack.name}-{schedule}"
        try:
            found = stack.ask("scheduler", "get_schedule", name, Name=name)
        except OperatorError as error:
            remedy = "If it was deleted: `uv run --group deploy sam deploy` with any change makes it again. Until then nothing renews by itself."
            yield Finding(f"schedule {name}", Verdict.UNKNOWN, str(error), remedy)
            continue
        if found["State"] == "ENABLED":
            yield Finding(f"schedule {name}", Verdict.OK, f"enabled, {found['ScheduleExpression']}")
        else:
            remedy = f"Somebody disabled it: enable it in EventBridge Scheduler (schedule group default, {name})."
            yield Finding(f"schedule {name}", Verdict.WRONG, str(found["State"]).lower(), remedy)


def _accounts(stack: Stack) -> Iterator[Finding]:
    stored = stack.stored_parameters()
    document, _ = stack.health()
    kept = {one["account"]: one for one in document["accounts"]}
    if not stored and not kept:
        yield Finding("accounts", Verdict.NOTE, "none is kept", "Add one: `token-keeper accounts add`.")
    for name, kind in sorted(stored.items()):
        yield from _parameter(stack, name, kind, kept=name in kept)
    for name, account in kept.items():
        if name not in stored:
            remedy = "Its parameter is gone; the next main tick drops it. If that was no intention, add it again."
            yield Finding(f"account {name}", Verdict.WRONG, "kept, but there is no parameter", remedy)
        for credential in account["credentials"]:
            yield _credential(name, credential)


def _parameter(stack: Stack, name: str, kind: str, *, kept: bool) -> Iterator[Finding]:
    subject = f"parameter {name}"
    if not ACCOUNT_NAME.fullmatch(name):
        remedy = "An account's name is up to 64 lower-case letters, digits and dashes: store it under such a name."
        yield Finding(subject, Verdict.WRONG, "its name makes it no account", remedy)
    elif kind != "SecureString":
        remedy = f"Its secret lies there unencrypted. `token-keeper accounts remove {name}`, add it again, and reset the secret at WeChat."
        yield Finding(subject, Verdict.WRONG, f"a {kind}, not a SecureString", remedy)
    elif not kept:
        remedy = (
            "A change is taken over within seconds, else by the next main tick. Look again; if it stays so, see the log of "
            f"{stack.outputs['RefreshFunctionName']}."
        )
        yield Finding(subject, Verdict.WRONG, "not taken over yet", remedy)
    else:
        yield Finding(subject, Verdict.OK, "taken over")


def _credential(account: str, credential: Json) -> Finding:
    subject = f"{account} {credential['credential']}"
    state, error, foreign = credential["state"], credential["last_error"], credential["foreign_rotations"]
    if error:
        code = "" if error["errcode"] is None else f" {error['errcode']}"
        return Finding(subject, Verdict.WRONG, f"{state}, {error['class']}{code}: {error['errmsg']}", error["remedy"])
    if state in ("never_fetched", "expired"):
        remedy = f"`token-keeper refresh {account}` tries now and says what stands in the way."
        return Finding(subject, Verdict.WRONG, state, remedy)
    if foreign:
        return Finding(subject, Verdict.NOTE, f"{state}; killed early {foreign['count']} time(s)", foreign["remedy"])
    return Finding(subject, Verdict.OK, state)


def _address(stack: Stack) -> Iterator[Finding]:
    mode = stack.parameters.get("EgressMode", "none")
    if mode in FIXED_ADDRESSES:
        own = stack.parameters.get("EgressAllocationId")
        address = stack.outputs.get("EgressIp") or f"the Elastic IP address {own}"
        says = f"calls to WeChat come from {address} ({FIXED_ADDRESSES[mode]})"
        yield Finding("address", Verdict.OK, says, f"Every account's IP whitelist (IP白名单) must name {address}.")
    elif mode == "existing":
        remedy = "Put the address of their NAT gateway on every account's IP whitelist (IP白名单)."
        yield Finding("address", Verdict.NOTE, "calls to WeChat leave through your own subnets", remedy)
    else:
        document, _ = stack.health()
        errors = [each["last_error"] for one in document["accounts"] for each in one["credentials"]]
        refused = any(error and error["errcode"] in IP_NOT_ALLOWED for error in errors)
        remedy = f"Where WeChat wants an IP whitelist (公众号, 企业微信), deploy with {', or '.join(FIXED_ADDRESSES.values())}."
        verdict = Verdict.WRONG if refused else Verdict.NOTE
        yield Finding("address", verdict, "calls to WeChat come from changing addresses", remedy)


def _dead_letters(stack: Stack) -> Iterator[Finding]:
    url = stack.outputs["DeadLetterQueueUrl"]
    count = "ApproximateNumberOfMessages"
    answer = stack.ask("sqs", "get_queue_attributes", url, QueueUrl=url, AttributeNames=[count])
    if waiting := int(answer["Attributes"][count]):
        remedy = f"Read their attributes for the reason, put that right, then `aws sqs purge-queue --queue-url {url}`."
        yield Finding("dead letters", Verdict.WRONG, f"{waiting} event(s) could not be handled", remedy)
    else:
        yield Finding("dead letters", Verdict.OK, "none")


def _alarms(stack: Stack) -> Iterator[Finding]:
    topic = stack.outputs["AlarmTopicArn"]
    subscriptions = stack.ask("sns", "list_subscriptions_by_topic", topic, TopicArn=topic)["Subscriptions"]
    confirmed = [one for one in subscriptions if one["SubscriptionArn"].startswith("arn:")]
    for one in subscriptions:
        if one not in confirmed:
            remedy = (
                "Open the mail from AWS Notifications and confirm; if it is lost or older than 3 days, deploy again."
            )
            yield Finding("alarm mail", Verdict.WRONG, f"{one['Endpoint']} has not confirmed", remedy)
    if confirmed:
        yield Finding("alarm mail", Verdict.OK, f"{len(confirmed)} confirmed subscription(s)")
    elif not subscriptions:
        remedy = "Deploy with AlarmEmail=…, or subscribe something else to the topic."
        yield Finding("alarm mail", Verdict.NOTE, "nobody hears the alarms", remedy)
    arguments = {"AlarmNamePrefix": f"{stack.name}-", "StateValue": "ALARM"}
    ringing = stack.ask("cloudwatch", "describe_alarms", "its alarms", **arguments)["MetricAlarms"]
    for alarm in ringing:
        yield Finding(f"alarm {alarm['AlarmName']}", Verdict.WRONG, "it rings", alarm.get("AlarmDescription"))
    if not ringing:
        yield Finding("alarms", Verdict.OK, "none rings")
