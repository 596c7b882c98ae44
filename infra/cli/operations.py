"""What the command line does, without its words on the screen.

CloudFormation's outputs say where a stack's things are. Records are written to Parameter Store, consumers to the table, health
and tokens are read from the API, and RefreshFunction is asked to renew; all of it with the operator's own AWS credentials.
"""

import json
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import boto3
import requests
from botocore import exceptions as aws
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.parsers import ResponseParserError
from requests.auth import AuthBase

from infra.cli.aws_errors import NOT_AWS, SIGN_IN, by_code, in_words, is_foreign
from infra.cli.terminal import plain
from infra.errors import NoTokenError, OperatorError, UnknownAccountError
from infra.local import access_keys
from token_keeper.errors import InvalidRecordError
from token_keeper.model import ACCOUNT_NAME, CORP_TICKETS, PUBLIC_TICKETS, digest
from token_keeper.notify.robots import Robot, RobotError, parse_robot
from token_keeper.refresh.parameter_store import parse_record, record_version

type Json = dict[str, Any]

LOCAL_STACK = "local"
"""The name of the stack that `token-keeper local` runs."""

API_TIMEOUT = 35
"""Seconds: API Gateway gives its integration 30, and its own answer comes after that."""

RENEW_ONCE = Config(read_timeout=900, retries={"total_max_attempts": 1})
"""A function runs for at most 900 s. Never retried: a second rotation would invalidate the token before last, which clients
may still use."""

LOCAL_ONCE = Config(proxies={}, retries={"total_max_attempts": 1})
"""No proxy reaches this machine's own address, and what does not answer there at once is not running."""

CONSUMERS = "consumers"
"""The partition of the table with an item for each consumer key, named by its SHA-256."""

CONSUMER_NAMES = "consumer_names"
"""The partition with an item for each consumer's name, which lists the keys that the command line has made for it."""

ACCOUNT_PATTERN = re.compile(r"[a-z0-9*][a-z0-9*-]{0,63}")

APPID = re.compile(r"wx[0-9a-f]{16}")
APPSECRET = re.compile(r"[0-9A-Fa-f]{32}")

START_LOCAL = "is `token-keeper local` running? TOKEN_KEEPER_LOCAL_PORT names its port."
NO_TICKETS = "none"


def new_record(appid: str | None, corpid: str | None, endpoint: str | None, tickets: Collection[str]) -> Json:
    """An account's record but for its secret; refuses with OperatorError what WeChat does not have."""
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


@dataclass(frozen=True)
class Kept:
    """An account in the table's directory. `version`: of the record in force; None while there is none."""

    app_id: str
    kind: str
    version: str | None


@dataclass(frozen=True)
class ConsumerKey:
    """A consumer's key, known by its SHA-256, and what it permits.

    `cache_for`: the most seconds of a token's life that the consumer is told. `rotated_at`: since when there is a newer key
    (epoch seconds). `is_registered`: whether the command line has made it.
    """

    name: str
    key_digest: str
    accounts: tuple[str, ...]
    may_report: bool
    cache_for: int | None
    rotated_at: int | None
    is_registered: bool
    item: Json = field(repr=False)


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
    health = {one["credential"]: one for one in document["credentials"]}
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


def account_patterns(listed: str) -> list[str]:
    """The names and patterns of accounts in a list with commas; refuses with OperatorError what is none."""
    patterns = list(dict.fromkeys(pattern.strip() for pattern in listed.split(",")))
    if wrong := [pattern for pattern in patterns if not ACCOUNT_PATTERN.fullmatch(pattern)]:
        raise OperatorError(f"'{wrong[0]}' is no account: use names like main, or patterns like mini-*, with commas.")
    return patterns


def new_consumer(
    name: str, accounts: Iterable[str], *, may_report: bool, now: int, cache_for: int | None = None
) -> tuple[str, Json]:
    """A consumer's key, which is kept nowhere, and its item for the table.

    `accounts`: names, or patterns with `*`. `now`: epoch seconds. `cache_for`: the most seconds of a token's life that it is
    told.
    """
    key, item = _new_key(now)
    item |= {"name": {"S": name}, "accounts": {"S": " ".join(accounts)}, "may_report": {"N": str(int(may_report))}}
    return key, item | ({} if cache_for is None else {"cache_for": {"N": str(cache_for)}})


def _new_key(now: int) -> tuple[str, Json]:
    """A consumer's key, `wtk_` and 32 random bytes in base64url, and what an item says of the key alone."""
    key = "wtk_" + secrets.token_urlsafe(32)
    return key, {"pk": {"S": CONSUMERS}, "sk": {"S": digest(key)}, "created_at": {"N": str(now)}}


class Stack:
    """A stack and what one can do with it. Every method raises OperatorError where it cannot do it."""

    def __init__(self, name: str, region: str | None = None, local_port: int | None = None) -> None:
        """Find the stack in AWS; with `local_port`, the one of the `token-keeper local` whose API is on that port.

        Without `region`, AWS_REGION is taken (botocore itself does not know it), AWS_DEFAULT_REGION or the profile's.
        """
        self.is_local = local_port is not None
        self._local_port = local_port
        self._keys = None if local_port is None else access_keys.read(local_port)
        if self.is_local and not self._keys:
            raise OperatorError(f"On port {local_port} there is no local stack of yours: {START_LOCAL}")
        self._endpoint = self._keys.endpoint_url if self._keys else None
        self._config = LOCAL_ONCE if self.is_local else Config()
        self._region = region or os.environ.get("AWS_REGION") or None
        self._clients: dict[str, Any] = {}
        name = LOCAL_STACK if self.is_local else name
        with self._aws(name):
            self._session = (
                access_keys.session(self._keys.operator) if self._keys else boto3.Session(region_name=self._region)
            )
            self._region = self._session.region_name
            stack = self._client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]
            self.name, self.status = name, str(stack["StackStatus"])
        self.outputs = outputs = {one["OutputKey"]: one["OutputValue"] for one in stack.get("Outputs", [])}
        self.parameters = parameters = {
            one["ParameterKey"]: one["ParameterValue"] for one in stack.get("Parameters", [])
        }
        # A stack of the release before has neither; only `notifications` needs them.
        self._notify_function = outputs.get("NotifyFunctionName", "")
        self._notifications_path = outputs.get("NotificationsPath", "").rstrip("/")
        try:
            self._api_url = outputs["ApiUrl"].rstrip("/")
            self._accounts_path = outputs["AccountsPath"].rstrip("/")
            self._refresh_function = outputs["RefreshFunctionName"]
            self._table = outputs["TokenTableName"]
        except KeyError as missing:
            raise OperatorError(
                f"The stack '{name}' has no output {missing}: is it a different stack, or still being created?"
            ) from None
        self._kms_key = parameters.get("KmsKeyArn")
        self.has_compatible_api = parameters.get("WeChatCompatibleApi") != "disabled"
        """Whether the stack answers consumers: its parameter `WeChatCompatibleApi`."""

    # --- asking

    def health(self, account: str | None = None) -> tuple[Json, float]:
        """The API's document on the account, or `{"accounts": […]}` with all; and the API's time in epoch seconds.

        Raises UnknownAccountError too.
        """
        if account is not None:
            return self._get(f"/v1/accounts/{quote(account, safe='')}", "credentials")
        page, now = self._get("/v1/accounts", "accounts")
        accounts = page["accounts"]
        while after := page.get("next"):
            page, now = self._get("/v1/accounts", "accounts", next=after)
            accounts += page["accounts"]
        return {"accounts": accounts}, now

    def token(self, account: str) -> Json:
        """The API's answer with the account's access token. Raises NoTokenError and UnknownAccountError too."""
        document, _ = self._get(f"/v1/accounts/{quote(account, safe='')}/access-token", "access_token")
        return document

    def parameters_below_path(self) -> dict[str, Parameter]:
        """What lies below the accounts' path, by its name there; values stay encrypted. A name with `/` lies too deep."""
        arguments = {"Path": self._accounts_path, "Recursive": True}
        found = self.ask_all("ssm", "get_parameters_by_path", "Parameters", self._accounts_path, **arguments)
        return {
            one["Name"].removeprefix(self._accounts_path).removeprefix("/"): Parameter(
                one["Type"], record_version(one), one["LastModifiedDate"].timestamp()
            )
            for one in found
        }

    def directory(self) -> dict[str, Kept]:
        """The accounts that RefreshFunction keeps, by name, as the table lists them."""
        return {
            item["sk"]["S"]: Kept(item["app_id"]["S"], item["kind"]["S"], item.get("version", {}).get("S"))
            for item in self._partition("accounts")
        }

    def ask(self, service: str, operation: str, subject: str, **arguments: Any) -> Json:
        """Ask another AWS service about `subject`, by one of boto3's operations."""
        with self._aws(subject):
            answer: Json = getattr(self._client(service), operation)(**arguments)
        return answer

    def ask_all(self, service: str, operation: str, listed: str, subject: str, **arguments: Any) -> list[Any]:
        """All that an operation lists under `listed`, over its pages."""
        with self._aws(subject):
            pages = self._client(service).get_paginator(operation).paginate(**arguments)
            return [one for page in pages for one in page[listed]]

    # --- accounts

    def record(self, account: str) -> Json:
        """The account's record as it is in Parameter Store: it holds the secret."""
        with self._aws(account):
            value = self._client("ssm").get_parameter(Name=self._parameter(account), WithDecryption=True)
            text = value["Parameter"]["Value"]
        try:
            record = json.loads(text.removeprefix("\ufeff"))
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise OperatorError(f"The record of '{account}' is not JSON: remove the account and add it again.")
        return record

    def parameter(self, account: str) -> Parameter | None:
        """The account's parameter without its value; None where there is none."""
        with self._aws(account):
            try:
                found = self._client("ssm").get_parameter(Name=self._parameter(account), WithDecryption=False)
            except aws.ClientError as error:
                if error.response["Error"]["Code"] == "ParameterNotFound":
                    return None
                raise
            one = found["Parameter"]
            return Parameter(one["Type"], record_version(one), one["LastModifiedDate"].timestamp())

    def refuse_if_taken(self, account: str, appid: str | None) -> None:
        """Raise OperatorError where the name or the appid is kept already."""
        if self.parameter(account) is not None:
            raise OperatorError(
                by_code("ParameterAlreadyExists", operation="PutParameter", subject=account, region=self._region)
            )
        for name, kept in self.directory().items():
            if appid is not None and kept.app_id == appid and name != account:
                raise OperatorError(
                    f"{appid} is kept already, as account {name}: two accounts of one appid would kill each other's tokens."
                )

    def put_record(self, account: str, record: Json, *, overwrite: bool) -> None:
        """Store an account's record; without `overwrite`, only where there is none."""
        # Named each time: a parameter that is overwritten without a key falls back to the AWS account's default key.
        key: Any = {"KeyId": self._kms_key} if self._kms_key else {}
        with self._aws(account):
            self._client("ssm").put_parameter(
                Name=self._parameter(account),
                Value=json.dumps(record),
                Type="SecureString",
                Overwrite=overwrite,
                **key,
            )

    def remove_record(self, account: str) -> None:
        """Delete the account's record."""
        with self._aws(account):
            self._client("ssm").delete_parameter(Name=self._parameter(account))

    def errors_of(self, account: str) -> dict[str, Json]:
        """The last error of each of the account's credentials that has one; none where the account is not kept."""
        try:
            document, _ = self.health(account)
        except UnknownAccountError:
            return {}
        return {one["credential"]: one["last_error"] for one in document["credentials"] if one["last_error"]}

    def judgement(
        self, account: str, changed: Parameter, credentials: Collection[str], before: Mapping[str, Json]
    ) -> Judgement:
        """What is known by now of WeChat's verdict on the account's changed record; see `judge`."""
        key = {"pk": {"S": "accounts"}, "sk": {"S": account}}
        entry = self.ask("dynamodb", "get_item", self._table, TableName=self._table, Key=key, ConsistentRead=True)
        try:
            document, _ = self.health(account)
        except UnknownAccountError:
            return Judgement(None, {})
        in_force = entry.get("Item", {}).get("version", {}).get("S") == changed.version
        return judge(document, in_force=in_force, credentials=credentials, before=before)

    # --- group robots

    def robot_origins(self) -> list[dict[str, str]]:
        """Scheme and host of each platform's robots as NotifyFunction knows them; for a local stack also the simulated ones."""
        function = self._notify_function
        if not function:
            raise OperatorError(f"The stack '{self.name}' has no notifications: deploy this version first.")
        configuration = self.ask("lambda", "get_function_configuration", function, FunctionName=function)
        variables = configuration["Environment"]["Variables"]
        names = ("wecom", "feishu", "dingtalk")
        origins = [{name: variables[f"{name.upper()}_ROBOT_URL"] for name in names}]
        if self._local_port is not None:
            origins.append(dict.fromkeys(names, f"http://127.0.0.1:{self._local_port + 2}"))
        return origins

    def put_robot(self, name: str, value: str) -> None:
        """Store a new robot's record, which holds its address."""
        key: Any = {"KeyId": self._kms_key} if self._kms_key else {}
        with self._aws(f"robot {name}"):
            self._client("ssm").put_parameter(
                Name=f"{self._notifications_path}/{name}", Value=value, Type="SecureString", **key
            )

    def remove_robot(self, name: str) -> None:
        """Delete a robot's record."""
        with self._aws(f"robot {name}"):
            self._client("ssm").delete_parameter(Name=f"{self._notifications_path}/{name}")

    def robots(self) -> dict[str, Robot | RobotError]:
        """Every robot, or what is wrong with its record, by name."""
        all_origins, path = self.robot_origins(), self._notifications_path
        found = self.ask_all("ssm", "get_parameters_by_path", "Parameters", path, Path=path, WithDecryption=True)
        robots: dict[str, Robot | RobotError] = {}
        for one in found:
            name = one["Name"].rpartition("/")[2]
            for origins in all_origins:
                try:
                    robots[name] = parse_robot(name, one["Value"], origins)
                except RobotError as error:
                    robots.setdefault(name, error)
        return robots

    def test_robot(self, name: str) -> Json:
        """Have NotifyFunction write a test message: `delivered`, and the `reason` where it was not."""
        function = self._notify_function
        payload = json.dumps({"test": name})
        answer = self.ask("lambda", "invoke", function, FunctionName=function, Payload=payload)
        told: Json = json.load(answer["Payload"])
        if "FunctionError" in answer:
            raise OperatorError(f"{function} failed with {plain(told.get('errorType'))}: read its log to see why.")
        return told

    # --- consumers

    def consumer_keys(self) -> list[ConsumerKey]:
        """The consumers' keys, by name, the newest of each first."""
        registered = {(item["sk"]["S"], key) for item in self._partition(CONSUMER_NAMES) for key in item["keys"]["SS"]}
        keys = [_consumer_key(item, registered) for item in self._partition(CONSUMERS)]
        return sorted(keys, key=lambda key: (key.name, key.rotated_at is not None))

    def add_consumer(
        self, name: str, accounts: Iterable[str], *, may_report: bool, cache_for: int | None = None
    ) -> str:
        """Let another consumer read these accounts; returns its key, which is kept nowhere."""
        key, item = new_consumer(name, accounts, may_report=may_report, now=int(time.time()), cache_for=cache_for)
        entry = {"pk": {"S": CONSUMER_NAMES}, "sk": {"S": name}, "keys": {"SS": [digest(key)]}}
        # Of two operators who add the same name at once, the condition lets one through.
        is_new = {"ConditionExpression": "attribute_not_exists(pk)"}
        exists = f"The consumer '{name}' exists: choose another name, rotate its key, or revoke it first."
        if any(consumer.name == name for consumer in self.consumer_keys()):
            raise OperatorError(exists)
        self._write([{"Put": {"Item": entry, **is_new}}, {"Put": {"Item": item}}], refused=exists)
        return key

    def rotate_consumer(self, name: str) -> str:
        """Give the consumer a second key, which is returned; the first works until `revoke_consumer` with `old_only`."""
        current, *others = self._keys_of(name)
        if others:
            raise OperatorError(
                f"'{name}' has two keys already: revoke the old one first, with `consumers revoke {name} --old`."
            )
        key, item = _new_key(int(time.time()))
        item = {**current.item, **item}
        old = {"pk": {"S": CONSUMERS}, "sk": {"S": current.key_digest}}
        mark = {
            "Key": old,
            "UpdateExpression": "SET rotated_at = :now",
            "ConditionExpression": "attribute_exists(pk) AND attribute_not_exists(rotated_at)",
            "ExpressionAttributeValues": {":now": item["created_at"]},
        }
        register = {
            "Key": {"pk": {"S": CONSUMER_NAMES}, "sk": {"S": name}},
            "UpdateExpression": "ADD #keys :keys",
            "ExpressionAttributeNames": {"#keys": "keys"},
            "ExpressionAttributeValues": {":keys": {"SS": [digest(key), current.key_digest]}},
        }
        changed = f"The consumer '{name}' was changed by another operator just now: look again."
        self._write([{"Update": mark}, {"Put": {"Item": item}}, {"Update": register}], refused=changed)
        return key

    def revoke_consumer(self, name: str, *, old_only: bool = False) -> None:
        """Let the consumer's keys be valid no longer; with `old_only`, those that were replaced."""
        keys = self._keys_of(name)
        revoked = [key for key in keys if key.rotated_at is not None] if old_only else keys
        if not revoked:
            raise OperatorError(f"'{name}' has no old key: `consumers rotate {name}` makes a new one first.")
        deletions = [{"Delete": {"Key": {"pk": {"S": CONSUMERS}, "sk": {"S": key.key_digest}}}} for key in revoked]
        register: Json = {"Key": {"pk": {"S": CONSUMER_NAMES}, "sk": {"S": name}}}
        if len(revoked) < len(keys):
            register |= {
                "UpdateExpression": "DELETE #keys :keys",
                "ExpressionAttributeNames": {"#keys": "keys"},
                "ExpressionAttributeValues": {":keys": {"SS": [key.key_digest for key in revoked]}},
            }
        self._write([*deletions, {"Update" if len(revoked) < len(keys) else "Delete": register}])

    def _keys_of(self, name: str) -> list[ConsumerKey]:
        keys = [key for key in self.consumer_keys() if key.name == name]
        if not keys:
            raise OperatorError(f"There is no consumer '{name}': `token-keeper consumers list` shows those there are.")
        return keys

    def _partition(self, pk: str) -> list[Json]:
        query = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk",
            "ExpressionAttributeValues": {":pk": {"S": pk}},
            "ConsistentRead": True,
        }
        return self.ask_all("dynamodb", "query", "Items", self._table, **query)

    def _write(self, writes: list[Json], *, refused: str = "") -> None:
        """Write all of it or nothing; `refused` says what it means where a condition does not hold."""
        named = [
            {kind: {"TableName": self._table, **write} for kind, write in operation.items()} for operation in writes
        ]
        with self._aws(self._table):
            try:
                self._client("dynamodb").transact_write_items(TransactItems=named)
            except aws.ClientError as error:
                if refused and error.response["Error"]["Code"] == "TransactionCanceledException":
                    raise OperatorError(refused) from None
                raise

    # --- renewing

    def renew(self, account: str, credential: str) -> Json:
        """Have a credential replaced now, and return RefreshFunction's summary."""
        event = {"renew": {"account": account, "credential": credential, "rotate": True}}
        config = self._config.merge(RENEW_ONCE)
        with self._aws(self._refresh_function):
            function = self._session.client("lambda", endpoint_url=self._endpoint, config=config)
            answer = function.invoke(FunctionName=self._refresh_function, Payload=json.dumps(event))
            summary: Json = json.load(answer["Payload"])
            if "FunctionError" not in answer:
                return {**summary, "renewed": summary["renewed"]}
        error = plain(summary.get("errorType"))
        raise OperatorError(f"{self._refresh_function} failed with {error}: read its log to see why.")

    # --- the wire

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = self._session.client(  # type: ignore[call-overload]
                service, endpoint_url=self._endpoint, config=self._config
            )
        return self._clients[service]

    def _parameter(self, account: str) -> str:
        return f"{self._accounts_path}/{account}"

    def _get(self, path: str, wanted: str, **query: str) -> tuple[Json, float]:
        """What the API answers, which has the field `wanted`, and its time."""
        with self._aws(path), requests.Session() as http:
            http.trust_env = not self.is_local  # as for LOCAL_ONCE: no proxy
            http.auth = _SigV4(self._session)
            if self._keys:
                http.headers[access_keys.API_KEY_HEADER] = self._keys.api_key
            reply = self._request(lambda: http.get(self._api_url + path, params=query, timeout=API_TIMEOUT))
        date = reply.headers.get("Date")
        try:
            document = reply.json()
        except requests.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            raise OperatorError(
                f"{self._api_url} answered {reply.status_code} without JSON: a proxy or another program did, not the API."
            )
        code = document.get("code")
        if reply.status_code == 403:
            raise OperatorError(self._forbidden(path, reply.headers.get("x-amzn-errortype", ""), date))
        if code == "unknown_account":
            raise UnknownAccountError("There is no such account: `token-keeper accounts list` shows those there are.")
        if code == "no_valid_value":
            raise NoTokenError(_no_value(document))
        if not reply.ok:
            detail = document.get("detail") or document.get("title") or document.get("message")
            raise OperatorError(f"The API answered {reply.status_code}: {plain(detail)}")
        if wanted not in document:
            raise OperatorError(NOT_AWS.format(where="the API"))
        # The API's clock: this machine's may be wrong, and the local stack's may run fast.
        try:
            return document, parsedate_to_datetime(date or "").timestamp()
        except ValueError:
            return document, time.time()

    def _request(self, send: Callable[[], requests.Response]) -> requests.Response:
        try:
            return send()
        except requests.exceptions.ProxyError:
            raise OperatorError("The proxy cannot be reached: check HTTPS_PROXY and HTTP_PROXY.") from None
        except requests.exceptions.SSLError:
            raise OperatorError(
                "The API's certificate is not trusted: where a proxy replaces certificates, name its own in REQUESTS_CA_BUNDLE."
            ) from None
        except requests.RequestException:
            if self.is_local:
                raise OperatorError(self._not_running(self._api_url)) from None
            raise OperatorError(f"{self._api_url} cannot be reached: check the network and the region.") from None

    def _forbidden(self, path: str, error_type: str, date: str | None) -> str:
        code = error_type.partition(":")[0]
        if code in ("", "ForbiddenException", "AccessDeniedException"):
            return f"AWS does not let you read {path}: have execute-api:Invoke on it allowed, or {SIGN_IN}."
        return by_code(code, operation="execute-api:Invoke", subject=path, region=self._region, date=date)

    @contextmanager
    def _aws(self, subject: str) -> Iterator[None]:
        """Put into words what AWS refused, or why it could not be asked."""
        try:
            yield
        except (aws.ClientError, aws.BotoCoreError, ResponseParserError, LookupError, ValueError) as error:
            raise OperatorError(self._in_words(error, subject)) from None

    def _in_words(self, error: Exception, subject: str) -> str:
        if self.is_local and isinstance(error, aws.ConnectionError | aws.HTTPClientError):
            return self._not_running(str(self._endpoint))
        if self.is_local and (is_foreign(error) or isinstance(error, KeyError)):
            return f"What answers at {self._endpoint} is no local stack of yours: {START_LOCAL}"
        return in_words(error, subject=subject, region=self._region)

    def _not_running(self, where: str) -> str:
        return f"Nothing answers at {where}: {START_LOCAL}"


def _no_value(document: Json) -> str:
    """A problem document of the API that says why there is no value."""
    cause = document.get("cause") or {}
    why = " ".join(plain(cause[part]) for part in ("class", "errcode") if cause.get(part) is not None)
    remedy = f"\n  → {plain(cause['remedy'])}" if cause.get("remedy") else ""
    return f"There is no usable token right now: {why or plain(document.get('detail'))}.{remedy}"


def _consumer_key(item: Json, registered: Collection[tuple[str, str]]) -> ConsumerKey:
    """A consumer's key of its item, which another program may have written in any form."""
    values = {name: next(iter(value.values())) for name, value in item.items()}
    name, key_digest = str(values.get("name", "")), str(values["sk"])
    return ConsumerKey(
        name=name,
        key_digest=key_digest,
        accounts=tuple(str(values.get("accounts", "")).split()),
        may_report=str(values.get("may_report")) == "1",
        cache_for=_whole(values.get("cache_for")),
        rotated_at=_whole(values.get("rotated_at")),
        is_registered=ACCOUNT_NAME.fullmatch(name) is not None and (name, key_digest) in registered,
        item=item,
    )


def _whole(value: object) -> int | None:
    text = str(value)
    return int(text) if text.isdecimal() else None


class _SigV4(AuthBase):
    """Signs a request to the API. (Being there, it also keeps `requests` from looking for a password in .netrc.)"""

    def __init__(self, session: boto3.Session) -> None:
        credentials = session.get_credentials()
        if credentials is None:
            raise aws.NoCredentialsError
        self._signer = SigV4Auth(credentials.get_frozen_credentials(), "execute-api", session.region_name)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        signed = AWSRequest(request.method, request.url)
        self._signer.add_auth(signed)
        request.headers.update(signed.headers.items())
        return request
