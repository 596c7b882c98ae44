"""The accounts' records in Parameter Store: what may stand in them, and which of them are in force."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from botocore import exceptions as aws

from infra.cli.aws_connection import Json
from infra.cli.aws_errors import by_code
from infra.cli.deployed_stack import DeployedStack
from infra.errors import OperatorError
from token_keeper.errors import InvalidRecordError
from token_keeper.model import CORP_TICKETS, PUBLIC_TICKETS
from token_keeper.refresh.parameter_store import parse_record, record_version

APPID = re.compile(r"wx[0-9a-f]{16}")
APPSECRET = re.compile(r"[0-9A-Fa-f]{32}")

NO_TICKETS = "none"


def new_record(appid: str | None, corpid: str | None, endpoint: str | None, tickets: Collection[str]) -> Json:
    """An account's record except its secret; refuses with OperatorError what WeChat does not have."""
    if (appid is None) == (corpid is None):
        raise OperatorError("Give either --appid (Official Account, Mini Program) or --corpid (WeCom).")
    if appid is not None and not APPID.fullmatch(appid):
        raise OperatorError(f"'{appid}' is no appid: that is 'wx' and 16 lower-case hex digits.")
    record: Json = {"corpid": corpid} if appid is None else {"appid": appid, "endpoint": "token"}
    return changed_record(record, endpoint, tickets)


def changed_record(record: Json, endpoint: str | None, tickets: Collection[str] | None) -> Json:
    """The record with that endpoint and those tickets (None: as they are); refuses what WeChat does not have."""
    is_corp = "corpid" in record
    known_tickets = CORP_TICKETS if is_corp else PUBLIC_TICKETS
    if tickets is not None and not set(tickets) <= set(known_tickets):
        raise OperatorError(f"--tickets takes {', '.join(known_tickets)} for this account, or {NO_TICKETS}.")
    if is_corp and endpoint is not None:
        raise OperatorError("--endpoint belongs to --appid: WeCom has one token endpoint.")
    changes = {"endpoint": endpoint, "tickets": tickets if tickets is None else list(tickets)}
    return {**record, **{name: value for name, value in changes.items() if value is not None}}


def listed_tickets(values: Iterable[str]) -> list[str]:
    """The tickets that an option names, each value one or several with commas; none for `none` or nothing."""
    names = [name.strip() for value in values for name in value.split(",")]
    return [name for name in dict.fromkeys(names) if name not in ("", NO_TICKETS)]


def with_secret(account: str, record: Json, secret: str) -> Json:
    """The record with that secret; refuses with OperatorError what RefreshFunction would not take."""
    record = {**record, "secret": secret}
    refuse_invalid(account, record)
    if "appid" in record and not APPSECRET.fullmatch(secret):
        raise OperatorError("Nothing was stored: an AppSecret has 32 hex digits. Copy it again from WeChat's console.")
    return record


def refuse_invalid(account: str, record: Json) -> None:
    """Raise OperatorError where RefreshFunction would not take the record."""
    try:
        parse_record(account, json.dumps(record))
    except InvalidRecordError as error:
        raise OperatorError(f"Nothing was stored: {error}.") from None


def real_record(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The record of the real account that WECHAT_APPID and WECHAT_APPSECRET name; None where neither is set.

    Its endpoint is `stable_token`: that takes no token away from other clients of the account. Raises OperatorError that
    says what is wrong with them, without their values.
    """
    forms = {
        "WECHAT_APPID": (APPID, "'wx' and 16 lower-case hex digits"),
        "WECHAT_APPSECRET": (APPSECRET, "32 hex digits"),
    }
    if not forms.keys() & environment.keys():
        return None
    for name, (form, meaning) in forms.items():
        value = environment.get(name, "")
        if not value.strip():
            raise OperatorError(f"{name} is blank: set both {' and '.join(forms)}, or neither for a simulated account.")
        if not form.fullmatch(value):
            raise OperatorError(f"{name} is malformed: it is {meaning}.")
    appid, secret = (environment[name] for name in forms)
    return {"appid": appid, "secret": secret, "endpoint": "stable_token"}


@dataclass(frozen=True)
class Parameter:
    """A parameter below the accounts' path. `version` changes whenever it does; `changed_at` is in epoch seconds."""

    kind: str
    version: str
    changed_at: float

    @classmethod
    def of(cls, found: Json) -> "Parameter":
        """The parameter that Parameter Store describes so."""
        return cls(found["Type"], record_version(found), found["LastModifiedDate"].timestamp())


@dataclass(frozen=True)
class Kept:
    """An account in the table's directory. `version`: of the record in force; None while there is none."""

    app_id: str
    kind: str
    version: str | None


def parameters_below_path(stack: DeployedStack) -> dict[str, Parameter]:
    """What lies below the accounts' path, by its name there; values stay encrypted. A name with `/` lies too deep."""
    path = stack.accounts_path
    found = stack.aws.ask_all("ssm", "get_parameters_by_path", "Parameters", path, Path=path, Recursive=True)
    return {each["Name"].removeprefix(path).removeprefix("/"): Parameter.of(each) for each in found}


def directory(stack: DeployedStack) -> dict[str, Kept]:
    """The accounts that RefreshFunction keeps, by name, as the table lists them."""
    return {
        item["sk"]["S"]: Kept(item["app_id"]["S"], item["kind"]["S"], item.get("version", {}).get("S"))
        for item in stack.partition("accounts")
    }


def parameter_of(stack: DeployedStack, account: str) -> Parameter | None:
    """The account's parameter without its value; None where there is none."""
    with stack.aws.errors_in_words(account):
        try:
            found = stack.aws.client("ssm").get_parameter(Name=_path(stack, account), WithDecryption=False)
        except aws.ClientError as error:
            if error.response["Error"]["Code"] == "ParameterNotFound":
                return None
            raise
        return Parameter.of(found["Parameter"])


def read_record(stack: DeployedStack, account: str) -> Json:
    """The account's record as it is in Parameter Store: it holds the secret."""
    with stack.aws.errors_in_words(account):
        value = stack.aws.client("ssm").get_parameter(Name=_path(stack, account), WithDecryption=True)
        text = value["Parameter"]["Value"]
    try:
        record = json.loads(text.removeprefix("\ufeff"))
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise OperatorError(f"The record of '{account}' is not JSON: remove the account and add it again.")
    return record


def refuse_if_taken(stack: DeployedStack, account: str, appid: str | None) -> None:
    """Raise OperatorError where the name or the appid is kept already."""
    if parameter_of(stack, account) is not None:
        raise OperatorError(
            by_code("ParameterAlreadyExists", operation="PutParameter", subject=account, region=stack.aws.region)
        )
    for name, kept in directory(stack).items():
        if appid is not None and kept.app_id == appid and name != account:
            raise OperatorError(
                f"{appid} is kept already, as account {name}: two accounts of one appid would kill each other's tokens."
            )


def put_record(stack: DeployedStack, account: str, record: Json, *, overwrite: bool) -> None:
    """Store an account's record; without `overwrite`, only where there is none."""
    stack.put_secret(account, _path(stack, account), json.dumps(record), overwrite=overwrite)


def remove_record(stack: DeployedStack, account: str) -> None:
    """Delete the account's record."""
    stack.aws.ask("ssm", "delete_parameter", account, Name=_path(stack, account))


def _path(stack: DeployedStack, account: str) -> str:
    return f"{stack.accounts_path}/{account}"
