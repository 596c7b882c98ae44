"""The accounts that people want kept, and what a record distinguishes."""

from collections.abc import Mapping
from typing import Any

from tests.simulation.expressions import Item
from tests.support.world import ACCOUNTS_PATH

RECORDS: dict[str, dict[str, Any]] = {
    "shop": {"appid": "wx_shop_000000001", "secret": "secret_of_shop_00000000000000001", "tickets": ["jsapi"]},
    "mini": {
        **{"appid": "wx_mini_000000001", "secret": "secret_of_mini_00000000000000001"},
        **{"endpoint": "stable_token", "tickets": ["wx_card"]},
    },
    "corp": {
        **{"corpid": "ww_corp_000000001", "secret": "secret_of_corp_00000000000000001"},
        "tickets": ["jsapi", "agent_config"],
    },
    "crm": {
        **{"corpid": "ww_corp_000000001", "secret": "secret_of_crm_000000000000000001"},
        "tickets": ["jsapi"],
    },
    "twin": {
        **{"appid": "wx_shop_000000001", "secret": "secret_of_shop_00000000000000001"},
        "endpoint": "stable_token",
    },
}
"""What people want kept, by account: both endpoints, two WeCom apps of one corp, and one appid under two names."""

OTHER_APPID = "wx_other_00000001"


def identity_of(record: Mapping[str, Any]) -> str:
    return str(record.get("corpid") or record["appid"])


def app_name_of(name: str, record: Mapping[str, Any]) -> str:
    """A corp's apps are distinguished by the account that they are for; an appid may be wanted under two names."""
    return f"{record['corpid']}/{name}" if "corpid" in record else str(record["appid"])


def claim_of(record: Mapping[str, Any]) -> tuple[str, str]:
    return identity_of(record), record["secret"] if "corpid" in record else ""


def endpoint_of(record: Mapping[str, Any]) -> str:
    return str(record.get("endpoint", "token"))


def text_of(item: Item | None) -> str | None:
    return item["value"]["S"] if item and "value" in item else None


def change_event(name: str, operation: str) -> dict[str, Any]:
    detail = {"name": f"{ACCOUNTS_PATH}/{name}", "operation": operation, "type": "SecureString"}
    return {"source": "aws.ssm", "detail-type": "Parameter Store Change", "detail": detail}
