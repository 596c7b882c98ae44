"""What the tests of the command line share: a small stack in moto, running a command, and what it has stored."""

import json
from functools import cache
from typing import Any

import boto3
from typer.testing import CliRunner, Result

from infra.cli import app

STACK, REGION = "wechat-token-keeper", "cn-north-1"
APPID = "wx617a123bb8bc99cd"
SECRET = "5f4dcc3b5aa765d61d8327deb882cf99"
TABLE = f"{STACK}-tokens"
ACCOUNTS_PATH = "/elsewhere/accounts"
API = "https://api.example.com"
NOW = "Sun, 22 Nov 2026 13:27:00 GMT"

TEMPLATE = {
    "Parameters": {
        "KmsKeyArn": {"Type": "String", "Default": ""},
        "WeChatCompatibleApi": {"Type": "String", "Default": "enabled"},
    },
    "Resources": {
        "TokenTable": {
            "Type": "AWS::DynamoDB::Table",
            "Properties": {
                "TableName": {"Fn::Sub": "${AWS::StackName}-tokens"},
                "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
                "KeySchema": [
                    {"AttributeName": "pk", "KeyType": "HASH"},
                    {"AttributeName": "sk", "KeyType": "RANGE"},
                ],
                "BillingMode": "PAY_PER_REQUEST",
            },
        }
    },
    "Outputs": {
        "ApiUrl": {"Value": f"{API}/"},
        "TokenTableName": {"Value": {"Ref": "TokenTable"}},
        "RefreshFunctionName": {"Value": "refresh"},
        "AccountsPath": {"Value": ACCOUNTS_PATH},
    },
}

FRESH = {
    "credential": "access_token",
    "state": "fresh",
    "fingerprint": "9f86d081884c7d65",
    "fetched_at": "2026-11-22T13:25:00Z",
    "expires_at": "2026-11-22T15:25:00Z",
    "renews_at": "2026-11-22T15:15:00Z",
    "failures": 0,
    "last_error": None,
}
ERROR = {
    "class": "configuration",
    "errcode": 40164,
    "errmsg": "invalid ip 8.149.1.2, not in whitelist [rid: 1]",
    "remedy": "Add 8.149.1.2 to the IP whitelist.",
    "at": "2026-11-22T13:24:00Z",
}
FAILING = FRESH | {"state": "failing", "failures": 3, "last_error": ERROR, "expires_at": "2026-11-22T13:27:40Z"}
NEVER = FRESH | {
    "credential": "jsapi",
    "state": "never_fetched",
    **dict.fromkeys(("fingerprint", "fetched_at", "expires_at", "renews_at")),
}


def account(name: str, *credentials: dict[str, Any]) -> dict[str, Any]:
    return {"account": name, "appid": APPID, "endpoint": "token", "credentials": list(credentials)}


class Service:
    """An AWS service that gives one response, and keeps the path and body of what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.response = ""
        self.url = ""


@cache
def client(service: str, region: str = REGION) -> Any:
    """A client of moto, made once: that takes longer than most calls."""
    return boto3.Session("example", "example", region_name=region).client(service)  # type: ignore[call-overload]


def create_stack(name: str, region: str = REGION, **parameters: str) -> None:
    """Deploy the template under that name."""
    given = [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]
    client("cloudformation", region).create_stack(StackName=name, TemplateBody=json.dumps(TEMPLATE), Parameters=given)


def empty_stack() -> None:
    """Delete the accounts' parameters, and all items of the table."""
    if stored_names := names():
        client("ssm").delete_parameters(Names=stored_names)
    for item in items():
        client("dynamodb").delete_item(TableName=TABLE, Key={key: item[key] for key in ("pk", "sk")})


def run(*arguments: str, stdin: str | bytes = "", **environment: str) -> Result:
    result = CliRunner(env=environment).invoke(app, arguments, input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def stored(name: str) -> dict[str, Any]:
    parameter = client("ssm").get_parameter(Name=f"{ACCOUNTS_PATH}/{name}", WithDecryption=True)["Parameter"]
    assert parameter["Type"] == "SecureString"
    record: dict[str, Any] = json.loads(parameter["Value"])
    return record


def put_item(**values: str) -> None:
    """Write an item of texts into the stack's table."""
    client("dynamodb").put_item(TableName=TABLE, Item={name: {"S": value} for name, value in values.items()})


def names() -> list[str]:
    """The parameters below the accounts' path."""
    return [each["Name"] for each in client("ssm").get_parameters_by_path(Path=ACCOUNTS_PATH)["Parameters"]]


def items() -> list[dict[str, Any]]:
    """All items of the stack's table."""
    found: list[dict[str, Any]] = client("dynamodb").scan(TableName=TABLE)["Items"]
    return found


def summary(**outcomes: Any) -> str:
    return json.dumps({"woken_by": "renew", "renewed": [], "skipped": [], "failed": [], **outcomes})
