"""NotifyFunction: what happened to credentials, out of the queue and into words for people: the topic and group robots."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from token_keeper.notify.delivery import Delivery
from token_keeper.notify.robots import RobotError, Robots

logger = logging.getLogger("notify")
logger.setLevel(logging.INFO)

# At DEBUG these write whole requests and responses, and so addresses of robots; urllib3 names the URL even in a warning.
for chatty in ("botocore", "boto3"):
    logging.getLogger(chatty).setLevel(logging.WARNING)
logging.getLogger("urllib3").setLevel(logging.CRITICAL)

TEST = "✅ token-keeper: 测试消息，一切正常 | test message, all is well"

type Handler = Callable[[Mapping[str, Any], Any], dict[str, Any]]


def create_handler(
    environment: Mapping[str, str], clock: Callable[[], float] = time.time, client: Callable[..., Any] = boto3.client
) -> Handler:
    """Make the handler for a stack's environment: `TOPIC_ARN`, `NOTIFICATIONS_PATH`, `WECOM_ROBOT_URL`,
    `FEISHU_ROBOT_URL`, `DINGTALK_ROBOT_URL` (scheme and host of each platform's robots).
    """
    # A mail, the robots' addresses, and a mail about robots take 18 s at most, the robots between them 16: in all less than the
    # function's 40 s.
    config = Config(connect_timeout=1, read_timeout=2, retries={"mode": "standard", "total_max_attempts": 2})
    origins = {name: environment[f"{name.upper()}_ROBOT_URL"] for name in ("wecom", "feishu", "dingtalk")}
    robots = Robots(client("ssm", config=config), environment["NOTIFICATIONS_PATH"], origins, clock)
    publish = partial(_publish, client("sns", config=config), environment["TOPIC_ARN"])
    return partial(_handle, robots, Delivery(robots, publish))


def _handle(robots: Robots, delivery: Delivery, event: Mapping[str, Any], _context: Any) -> dict[str, Any]:
    if "test" in event:
        return _test(robots, delivery, str(event["test"]))
    return {"batchItemFailures": [{"itemIdentifier": message} for message in delivery.deliver(event["Records"])]}


def _publish(sns: Any, topic: str, subject: str, text: str) -> bool:
    try:
        sns.publish(TopicArn=topic, Subject=subject, Message=text)
    except (ClientError, BotoCoreError) as error:
        logger.error("topic failed", extra={"reason": type(error).__name__})  # AWS may quote what was sent
        return False
    return True


def _test(robots: Robots, delivery: Delivery, name: str) -> dict[str, Any]:
    """Have one robot write a test message; the reason where it does not."""
    try:
        robot = dict(robots.read()).get(name)
    except RobotError as error:
        return {"delivered": False, "reason": str(error)}
    if robot is None:
        return {"delivered": False, "reason": "there is no robot of that name"}
    failure = robot if isinstance(robot, RobotError) else delivery.try_robot(robot, TEST)
    return {"delivered": failure is None, "reason": None if failure is None else str(failure)}


_handler = cache(lambda: create_handler(os.environ))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """AWS Lambda's entry: a batch of the queue, or `{"test": <robot's name>}`."""
    return _handler()(event, context)
