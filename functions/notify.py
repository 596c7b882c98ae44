"""NotifyFunction: what happened to credentials, out of the queue and into words for people: the topic and group robots."""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from token_keeper.notify import messages
from token_keeper.notify.messages import News
from token_keeper.notify.robots import Robot, RobotError, Robots

logger = logging.getLogger("notify")
logger.setLevel(logging.INFO)

# At DEBUG these write whole requests and responses, and so addresses of robots; urllib3 names the URL even in a warning.
for chatty in ("botocore", "boto3"):
    logging.getLogger(chatty).setLevel(logging.WARNING)
logging.getLogger("urllib3").setLevel(logging.CRITICAL)

TEST = "✅ token-keeper: 测试消息，一切正常 | test message, all is well"

ATTEMPTS = 2
"""Calls of a robot for one batch, before the queue delivers the batch again after 90 seconds."""

WORKERS = 16
"""Robots that are called at a time, so that one that does not respond keeps no other waiting."""

type Handler = Callable[[Mapping[str, Any], Any], dict[str, Any]]


class NotDeliveredError(Exception):
    """Some receivers did not get the message; the queue delivers the batch again."""


def create_handler(
    environment: Mapping[str, str], clock: Callable[[], float] = time.time, client: Callable[..., Any] = boto3.client
) -> Handler:
    """Make the handler for a stack's environment: `TOPIC_ARN`, `NOTIFICATIONS_PATH`, `WECOM_ROBOT_URL`,
    `FEISHU_ROBOT_URL`, `DINGTALK_ROBOT_URL` (scheme and host of each platform's robots).
    """
    config = Config(connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 2})
    origins = {name: environment[f"{name.upper()}_ROBOT_URL"] for name in ("wecom", "feishu", "dingtalk")}
    robots = Robots(client("ssm", config=config), environment["NOTIFICATIONS_PATH"], origins, clock)
    return partial(_handle, robots, client("sns", config=config), environment["TOPIC_ARN"])


def _handle(robots: Robots, sns: Any, topic: str, event: Mapping[str, Any], _context: Any) -> dict[str, Any]:
    if "test" in event:
        return _test(robots, str(event["test"]))
    news = [_news(record) for record in event["Records"]]
    failed = [] if _publish(sns, topic, news) else ["the topic"]
    try:
        found = list(robots.read())
    except RobotError as error:
        raise NotDeliveredError(str(error)) from None
    to_send: list[tuple[Robot, str]] = []
    for name, robot in found:
        if isinstance(robot, RobotError):
            logger.error("robot unusable", extra={"robot": name, "reason": str(robot)})
        elif concerned := messages.concerning(news, robot.accounts):
            to_send.append((robot, messages.text(concerned)))
    with ThreadPoolExecutor(WORKERS) as workers:
        reasons = list(workers.map(lambda each: _send(robots, *each), to_send))
    failed += [robot.name for (robot, _), reason in zip(to_send, reasons, strict=True) if reason is not None]
    logger.info("notified", extra={"events": len(news), "failed": failed})
    if failed:
        raise NotDeliveredError(f"not delivered to {', '.join(failed)}")
    return {"events": len(news)}


def _news(record: Mapping[str, Any]) -> News:
    event = json.loads(record["body"])
    return News(event["detail-type"], event["detail"])


def _publish(sns: Any, topic: str, news: list[News]) -> bool:
    try:
        sns.publish(TopicArn=topic, Subject=messages.subject(news), Message=messages.text(news))
    except (ClientError, BotoCoreError) as error:
        logger.error("topic failed", extra={"reason": type(error).__name__})  # AWS may quote what was sent
        return False
    return True


def _send(robots: Robots, robot: Robot, text: str) -> str | None:
    """Why the robot did not write the text; None where it did."""
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            robots.send(robot, text)
        except RobotError as error:
            reason = str(error)
        else:
            return None
    logger.error("robot failed", extra={"robot": robot.name, "reason": reason})
    return reason


def _test(robots: Robots, name: str) -> dict[str, Any]:
    """Have one robot write a test message; the reason where it does not."""
    try:
        robot = dict(robots.read()).get(name)
    except RobotError as error:
        return {"delivered": False, "reason": str(error)}
    if robot is None:
        return {"delivered": False, "reason": "there is no robot of that name"}
    reason = str(robot) if isinstance(robot, RobotError) else _send(robots, robot, TEST)
    return {"delivered": reason is None, "reason": reason}


_handler = cache(lambda: create_handler(os.environ))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """AWS Lambda's entry: a batch of the queue, or `{"test": <robot's name>}`. Raises `NotDeliveredError`."""
    return _handler()(event, context)
