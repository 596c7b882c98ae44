"""What the tests of accounts' parameters do again and again."""

import itertools
import json
from typing import Any

from tests.support.world import ACCOUNTS_PATH, APPID, SECRET, World

TOKEN, STABLE_TOKEN = "/cgi-bin/token", "/cgi-bin/stable_token"
NEW_SECRET, WRONG_SECRET = "fedcba9876543210fedcba9876543210", "00000000000000000000000000000000"
OTHER_APPID = "wxfedcba9876543210"


def record(**changes: object) -> str:
    """An account's record as it stands in its parameter."""
    return json.dumps({"appid": APPID, "secret": SECRET} | changes)


def put_without_event(world: World, name: str, value: str) -> None:
    """Write a parameter whose event is lost."""
    world.ssm.put_parameter(Name=f"{ACCOUNTS_PATH}/{name}", Value=value, Type="SecureString", Overwrite=True)


def read(world: World, path: str = "/v1/accounts/main/access-token") -> tuple[int, dict[str, Any]]:
    """What a reader gets that remembers nothing."""
    return world.get(path, world.api_instance())


def token(world: World, name: str = "main") -> str:
    """The token a reader gets that remembers nothing."""
    status, body = read(world, f"/v1/accounts/{name}/access-token")
    assert status == 200, body
    return str(body["access_token"])


def due(world: World) -> list[str]:
    """The partition keys that the index lists."""
    found = world.dynamodb.query(
        TableName=world.environment["TABLE_NAME"],
        IndexName="due",
        KeyConditionExpression="due = :due",
        ExpressionAttributeValues={":due": {"S": "due"}},
    )
    return [item["pk"]["S"] for item in found["Items"]]


def accounts(world: World) -> list[str]:
    """The accounts that are kept."""
    return [item["account"] for item in world.get("/v1/accounts")[1]["accounts"]]


def unreadable(world: World, reads: int) -> None:
    """Parameter Store shows no parameter to that many of the next reads."""
    get_parameters, left = world.ssm.get_parameters, itertools.count(1)

    def empty(**asked: Any) -> Any:
        found = get_parameters(**asked)
        return found if next(left) > reads else {**found, "Parameters": []}

    world.ssm.get_parameters = empty


def asked(name: str) -> dict[str, Any]:
    """How an account's record is read."""
    return {"Names": [f"{ACCOUNTS_PATH}/{name}"], "WithDecryption": True}


def change_secret(world: World, new: str = NEW_SECRET) -> None:
    """The account's secret is reset on WeChat's platform."""
    world.secrets.add(new)
    world.wechat.change_secret(APPID, SECRET, new)
