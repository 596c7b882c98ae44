"""WeChat's verdict on an account's changed record, as the account's health shows it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from infra.cli.account_records import Parameter
from infra.cli.aws_connection import Json
from infra.cli.deployed_stack import DeployedStack
from infra.errors import UnknownAccountError


@dataclass(frozen=True)
class Judgement:
    """What WeChat says to an account's record: `accepted` is None while that is not known; `failures` by credential."""

    accepted: bool | None
    failures: dict[str, Json]


def judge(document: Json, *, in_force: bool, credentials: Collection[str], before: Mapping[str, Json]) -> Judgement:
    """Read off an account's health what became of its changed record.

    `in_force`: whether that very record is applied. `credentials`: those that it changes. `before`: their errors before the
    change, which say nothing of it.
    """
    health = {item["credential"]: item for item in document["credentials"]}
    errors = {name: health[name]["last_error"] for name in credentials if name in health}
    new = {name: error for name, error in errors.items() if error and error != before.get(name)}
    # A record that cannot be applied at all is refused without an errcode, before it is in force.
    refused = {
        name: error
        for name, error in new.items()
        if error["class"] in ("configuration", "confirmation") and (in_force or error["errcode"] is None)
    }
    if refused:
        return Judgement(False, refused)
    fresh = all(name in health and health[name]["state"] == "fresh" and not errors[name] for name in credentials)
    return Judgement(True if in_force and fresh else None, new)


def errors_of(stack: DeployedStack, account: str) -> dict[str, Json]:
    """The last error of each of the account's credentials that has one; none where the account is not kept."""
    try:
        document, _ = stack.api.health(account)
    except UnknownAccountError:
        return {}
    return {item["credential"]: item["last_error"] for item in document["credentials"] if item["last_error"]}


def judgement_now(
    stack: DeployedStack, account: str, changed: Parameter, credentials: Collection[str], before: Mapping[str, Json]
) -> Judgement:
    """What is known by now of WeChat's verdict on the account's changed record; see `judge`."""
    key = {"pk": {"S": "accounts"}, "sk": {"S": account}}
    entry = stack.aws.ask("dynamodb", "get_item", stack.table, TableName=stack.table, Key=key, ConsistentRead=True)
    try:
        document, _ = stack.api.health(account)
    except UnknownAccountError:
        return Judgement(None, {})
    in_force = entry.get("Item", {}).get("version", {}).get("S") == changed.version
    return judge(document, in_force=in_force, credentials=credentials, before=before)
