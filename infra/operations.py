"""What the command line does, without its words on the screen.

CloudFormation's outputs say where a stack's things are. Records are written to Parameter Store, health is read from the
API, and RefreshFunction is asked to renew; all of it with the operator's own AWS credentials.
"""

import json
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
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

from infra import local_keys
from token_keeper.accounts import parse_record
from token_keeper.errors import InvalidRecordError
from token_keeper.model import CORP_TICKETS, PUBLIC_TICKETS, Consumer, digest

type Json = dict[str, Any]

LOCAL_STACK = "local"
"""The name of the stack that `token-keeper local` runs."""

API_TIMEOUT = 35
"""Seconds: API Gateway gives its integration 30, and its own answer comes after that."""

RENEW_ONCE = Config(read_timeout=900, retries={"total_max_attempts": 1})
"""900 seconds are the longest a function can run. No second call after a lost answer: it would rotate again, and that
kills the value before the last."""

LOCAL_ONCE = Config(proxies={}, retries={"total_max_attempts": 1})
"""No proxy reaches this machine's own address, and what does not answer there at once is not running."""

ACCOUNT_PATTERN = re.compile(r"[a-z0-9*][a-z0-9*-]{0,63}")

APPID = re.compile(r"wx[0-9a-f]{16}")
APPSECRET = re.compile(r"[0-9A-Fa-f]{32}")

EXPIRED = ("ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException")
START_LOCAL = "is `token-keeper local` running? TOKEN_KEEPER_LOCAL_PORT names its port."
SIGN_IN = "sign in to AWS again, or choose a profile with AWS_PROFILE"


class OperatorError(Exception):
    """What stands in the operator's way and what to do about it, in one sentence that never holds a secret."""


def new_record(appid: str | None, corpid: str | None, endpoint: str | None, tickets: list[str]) -> Json:
    """An account's record but for its secret; refuses with OperatorError what WeChat does not have."""
    if (appid is None) == (corpid is None):
        raise OperatorError("Give either --appid (Official Account, Mini Program) or --corpid (WeCom).")
    known_tickets = CORP_TICKETS if appid is None else PUBLIC_TICKETS
    if not set(tickets) <= set(known_tickets):
        raise OperatorError(f"--ticket must be one of {', '.join(known_tickets)} for this account.")
    if appid is None:
        if endpoint is not None:
            raise OperatorError("--endpoint belongs to --appid: WeCom has one token endpoint.")
        return {"corpid": corpid, "tickets": tickets}
    if not APPID.fullmatch(appid):
        raise OperatorError(f"'{appid}' is no appid: that is 'wx' and 16 lower-case hex digits.")
    return {"appid": appid, "endpoint": endpoint or "token", "tickets": tickets}


def with_secret(account: str, record: Json, secret: str) -> Json:
    """The record with that secret; refuses with OperatorError what RefreshFunction would not take."""
    record = {**record, "secret": secret}
    try:
        parse_record(account, json.dumps(record))
    except InvalidRecordError as error:
        raise OperatorError(f"Nothing was stored: {error}.") from None
    if "appid" in record and not APPSECRET.fullmatch(secret):
        raise OperatorError("Nothing was stored: an AppSecret has 32 hex digits. Copy it again from WeChat's console.")
    return record


def real_record(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The record of the real account that WECHAT_APPID and WECHAT_APPSECRET name; None where neither is set.

    Its endpoint is `stable_token`: that takes no token away from whoever else uses the account. Raises OperatorError
    that says what is wrong with them, without their values.
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
            raise OperatorError(f"{name} is malformed: it is {meaning} (公众平台 > 设置与开发 > 基本配置).")
    appid, secret = (environment[name] for name in forms)
    return {"appid": appid, "secret": secret, "endpoint": "stable_token"}


def new_consumer(name: str, accounts: Iterable[str], *, may_report: bool, now: int) -> tuple[str, Json]:
    """A consumer's key, which is kept nowhere, and its item for the table; refuses with OperatorError what is no account.

    `accounts`: names, or patterns with `*`. `now`: epoch seconds.
    """
    accounts = list(dict.fromkeys(accounts))
    if wrong := [account for account in accounts if not ACCOUNT_PATTERN.fullmatch(account)]:
        raise OperatorError(f"'{wrong[0]}' is no account: use names like main, or patterns like mini-*, with commas.")
    key = "wtk_" + secrets.token_urlsafe(32)
    item = {
        "pk": {"S": "consumers"},
        "sk": {"S": digest(key)},
        "name": {"S": name},
        "accounts": {"S": " ".join(accounts)},
        "may_report": {"N": str(int(may_report))},
        "created_at": {"N": str(now)},
    }
    return key, item


class Stack:
    """A stack and what one can do with it. Every method raises OperatorError where it cannot do it."""

    def __init__(self, name: str, region: str | None = None, local_port: int | None = None) -> None:
        """Find the stack in AWS; with `local_port`, the one of the `token-keeper local` whose API is on that port."""
        self._local = local_port is not None
        self._keys = None if local_port is None else local_keys.read(local_port)
        if self._local and not self._keys:
            raise OperatorError(f"On port {local_port} there is no local stack of yours: {START_LOCAL}")
        self._endpoint = self._keys.endpoint_url if self._keys else None
        self._config = LOCAL_ONCE if self._local else Config()
        name = LOCAL_STACK if self._local else name
        with self._aws(name):
            self._session = local_keys.session(self._keys.operator) if self._keys else boto3.Session(region_name=region)
            self._ssm = self._session.client("ssm", endpoint_url=self._endpoint, config=self._config)
            cloudformation = self._session.client("cloudformation", endpoint_url=self._endpoint, config=self._config)
            stack = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
        self.name, self.status = name, str(stack["StackStatus"])
        self.outputs = outputs = {one["OutputKey"]: one["OutputValue"] for one in stack.get("Outputs", [])}
        self.parameters = parameters = {
            one["ParameterKey"]: one["ParameterValue"] for one in stack.get("Parameters", [])
        }
        try:
            self._api_url = outputs["ApiUrl"].rstrip("/")
            self._accounts_path = outputs["AccountsPath"].rstrip("/")
            self._refresh_function = outputs["RefreshFunctionName"]
            self._table = outputs["TokenTableName"]
        except KeyError as missing:
            raise OperatorError(
                f"The stack '{name}' has no output {missing}: is it another, or still being made?"
            ) from None
        self._kms_key = parameters.get("KmsKeyArn")
        self.has_compatible_api = parameters.get("WeChatCompatibleApi") != "disabled"
        """Whether anybody answers a consumer: the stack's parameter `WeChatCompatibleApi`."""

    def health(self, account: str | None = None) -> tuple[Json, float]:
        """The API's document on the account, or `{"accounts": […]}` with all; and the API's time in epoch seconds."""
        if account is not None:
            return self._get(f"/v1/accounts/{quote(account, safe='')}")
        page, now = self._get("/v1/accounts")
        accounts = page["accounts"]
        while after := page.get("next"):
            page, now = self._get("/v1/accounts", next=after)
            accounts += page["accounts"]
        return {"accounts": accounts}, now

    def stored_parameters(self) -> dict[str, str]:
        """What lies directly below the accounts' path: the type of each parameter by its name there, no value."""
        with self._aws(self._accounts_path):
            pages = self._ssm.get_paginator("get_parameters_by_path").paginate(Path=self._accounts_path)
            return {one["Name"].rpartition("/")[2]: one["Type"] for page in pages for one in page["Parameters"]}

    def ask(self, service: str, operation: str, subject: str, **arguments: Any) -> Json:
        """Ask another AWS service about `subject`, by one of boto3's operations."""
        with self._aws(subject):
            client = self._session.client(service, endpoint_url=self._endpoint, config=self._config)  # type: ignore[call-overload]
            answer: Json = getattr(client, operation)(**arguments)
        return answer

    def record(self, account: str) -> Json:
        """The account's record as it stands in Parameter Store: it holds the secret."""
        with self._aws(account):
            value = self._ssm.get_parameter(Name=self._parameter(account), WithDecryption=True)["Parameter"]["Value"]
        try:
            return dict(json.loads(value))
        except (TypeError, ValueError):
            raise OperatorError(
                f"The record of '{account}' is not JSON: remove the account and add it again."
            ) from None

    def put_record(self, account: str, record: Json, *, overwrite: bool) -> None:
        """Store an account's record; without `overwrite`, only where there is none."""
        # Named each time: a parameter that is overwritten without a key falls back to the AWS account's default key.
        key: Any = {"KeyId": self._kms_key} if self._kms_key else {}
        with self._aws(account):
            self._ssm.put_parameter(
                Name=self._parameter(account),
                Value=json.dumps(record),
                Type="SecureString",
                Overwrite=overwrite,
                **key,
            )

    def remove_record(self, account: str) -> None:
        """Delete the account's record."""
        with self._aws(account):
            self._ssm.delete_parameter(Name=self._parameter(account))

    def consumers(self) -> list[Consumer]:
        """The consumers, by name."""
        query = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :consumers",
            "ExpressionAttributeValues": {":consumers": {"S": "consumers"}},
            "ConsistentRead": True,
        }
        with self._aws(self._table):
            pages = self._dynamodb().get_paginator("query").paginate(**query)
            items = [item for page in pages for item in page["Items"]]
        found = [
            Consumer(
                item["name"]["S"], item["sk"]["S"], tuple(item["accounts"]["S"].split()), item["may_report"]["N"] == "1"
            )
            for item in items
        ]
        return sorted(found, key=lambda consumer: consumer.name)

    def add_consumer(self, name: str, accounts: Iterable[str], *, may_report: bool) -> str:
        """Let another consumer read these accounts; returns its key, which is kept nowhere."""
        key, item = new_consumer(name, accounts, may_report=may_report, now=int(time.time()))
        if any(consumer.name == name for consumer in self.consumers()):
            raise OperatorError(f"The consumer '{name}' exists: choose another name, or revoke it first.")
        with self._aws(self._table):
            self._dynamodb().put_item(TableName=self._table, Item=item)
        return key

    def revoke_consumer(self, name: str) -> None:
        """Let the consumer's key (each, had two operators added the same name at once) be valid no longer."""
        revoked = [consumer for consumer in self.consumers() if consumer.name == name]
        if not revoked:
            raise OperatorError(f"There is no consumer '{name}': `token-keeper consumers list` shows those there are.")
        for consumer in revoked:
            key = {"pk": {"S": "consumers"}, "sk": {"S": consumer.key_digest}}
            with self._aws(self._table):
                self._dynamodb().delete_item(TableName=self._table, Key=key)

    def _dynamodb(self) -> Any:
        return self._session.client("dynamodb", endpoint_url=self._endpoint, config=self._config)

    def renew(self, account: str, credential: str) -> Json:
        """Have a credential replaced now, and return RefreshFunction's summary."""
        event = {"renew": {"account": account, "credential": credential, "rotate": True}}
        config = self._config.merge(RENEW_ONCE)
        with self._aws(self._refresh_function):
            function = self._session.client("lambda", endpoint_url=self._endpoint, config=config)
            answer = function.invoke(FunctionName=self._refresh_function, Payload=json.dumps(event))
            summary: Json = json.load(answer["Payload"])
        if "FunctionError" in answer:
            error = summary.get("errorType")
            raise OperatorError(f"{self._refresh_function} failed with {error}: read its log to see why.")
        return summary

    def _parameter(self, account: str) -> str:
        return f"{self._accounts_path}/{account}"

    def _get(self, path: str, **query: str) -> tuple[Json, float]:
        with self._aws(path), requests.Session() as http:
            http.trust_env = not self._local  # as for LOCAL_ONCE: no proxy
            http.auth = _SigV4(self._session)
            if self._keys:
                http.headers[local_keys.API_KEY_HEADER] = self._keys.api_key
            try:
                reply = http.get(self._api_url + path, params=query, timeout=API_TIMEOUT)
                document: Json = reply.json()
            except requests.JSONDecodeError:
                raise OperatorError(
                    f"{self._api_url} answered {reply.status_code} without JSON: is it the API?"
                ) from None
            except requests.RequestException:
                raise OperatorError(self._unreachable(self._api_url)) from None
        if reply.status_code == 403:
            raise OperatorError(
                f"AWS does not let you read {path}: have execute-api:Invoke on it allowed, or {SIGN_IN}."
            )
        if document.get("code") == "unknown_account":
            raise OperatorError("There is no such account: `token-keeper accounts list` shows those there are.")
        if not reply.ok:
            raise OperatorError(
                f"The API answered {reply.status_code}: {document.get('detail') or document.get('title')}"
            )
        # The API's clock: this machine's may be wrong, and the local stack's may run fast.
        date = reply.headers.get("Date")
        return document, parsedate_to_datetime(date).timestamp() if date else time.time()

    @contextmanager
    def _aws(self, subject: str) -> Iterator[None]:
        """Put into words what AWS refused. The error's own text stays out: it may repeat what was sent."""
        try:
            yield
        except aws.ClientError as error:
            code, operation = error.response.get("Error", {}).get("Code", "Unknown"), error.operation_name
            if self._local and (code in EXPIRED or operation == "DescribeStacks"):
                text = f"What answers at {self._endpoint} is no local stack of yours: {START_LOCAL}"
            elif code == "ParameterNotFound":
                text = f"There is no account '{subject}': `token-keeper accounts list` shows those there are."
            elif code == "ParameterAlreadyExists":
                text = f"The account '{subject}' exists: use `accounts set-secret {subject}`, or remove it first."
            elif code == "ValidationError" and operation == "DescribeStacks":
                text = f"There is no stack '{subject}' in {self._session.region_name}: give --stack-name and --region."
            elif code in EXPIRED:
                text = f"AWS does not know your credentials, or no longer: {SIGN_IN}."
            elif code.startswith("AccessDenied"):
                text = f"AWS does not let you {operation} for '{subject}': have it allowed, or {SIGN_IN}."
            else:
                text = f"AWS refused to {operation} for '{subject}': {code}."
            raise OperatorError(text) from None
        except aws.NoRegionError:
            raise OperatorError(
                "No AWS region is chosen: give --region before the command, or set AWS_REGION."
            ) from None
        except (aws.ConnectionError, aws.HTTPClientError):
            raise OperatorError(self._unreachable(self._endpoint or "AWS")) from None
        except (ResponseParserError, KeyError):  # botocore raises the latter for XML of another kind
            raise OperatorError(
                f"{self._endpoint or 'What answers'} is not AWS: another program, or a proxy."
            ) from None
        except aws.BotoCoreError as error:  # nearly always one of the many ways to have no credentials
            raise OperatorError(
                f"AWS credentials are missing or unusable ({type(error).__name__}): {SIGN_IN}."
            ) from None

    def _unreachable(self, where: str) -> str:
        if self._local:
            return f"Nothing answers at {where}: {START_LOCAL}"
        return f"{where} cannot be reached: check the network and the region."


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
