"""The delivery: a batch of the queue to the mail topic and the group robots.

A receiver that fails for a passing reason gets its messages again with the queue's next delivery. An instance remembers who has
got what, so that a message that comes again, for whatever reason, goes to those alone that have not got it. One that refuses for
good is not tried again: the log says so, and a mail.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Lock
from typing import Any

from token_keeper.notify import messages
from token_keeper.notify.messages import News
from token_keeper.notify.robots import Robot, RobotError, RobotRefusedError, Robots

ATTEMPTS = 2
"""Calls of a robot for one batch, before the queue delivers it again."""

WORKERS = 16
"""Robots that are called at a time, so that one that does not respond keeps no other waiting."""

MAX_REMEMBERED = 10_000
"""Deliveries that an instance remembers, the newest ones: a thousand events for ten receivers."""

MAIL = "the mail topic"

_logger = logging.getLogger("notify")

type _Delivery = tuple[str, messages.Identity]


class Delivery:
    """Delivers to one stack's receivers. `publish(subject, text)` gives a mail to the topic, and returns whether it was taken."""

    def __init__(self, robots: Robots, publish: Callable[[str, str], bool]) -> None:
        self._robots = robots
        self._publish = publish
        self._done: dict[_Delivery, None] = {}
        self._reported: set[str] = set()
        self._newest: dict[tuple[str, str], str] = {}
        self._lock = Lock()

    def deliver(self, records: Iterable[Mapping[str, Any]]) -> list[str]:
        """Give every receiver what it has not got yet. Returns the ids of the messages that the queue is to deliver again."""
        with self._lock:
            batch = [(record["messageId"], messages.news_of(record["body"])) for record in records]
            for _, each in batch:
                if each.is_state:
                    self._newest[each.credential] = max(each.time, self._newest.get(each.credential, ""))
            news = [replace(each, is_outdated=self._is_outdated(each)) for _, each in batch]
            left = self._mail(news)
            robots_left, problems = self._send_to_robots(news)
            left |= robots_left
            if unreported := [problem for problem in problems if problem not in self._reported]:
                text = messages.robots_text(unreported, news[0].detail["stack"])
                if self._publish("WeChat tokens: group robots that get no message", text):
                    self._reported.update(unreported)
            _logger.info("notified", extra={"events": len(news), "left": len(left)})
            return [message for message, each in batch if each.identity in left]

    def try_robot(self, robot: Robot, text: str) -> RobotError | None:
        """Have a robot write the text: why it did not, None where it did."""
        failure = None
        for _ in range(ATTEMPTS):
            try:
                self._robots.send(robot, text)
            except RobotError as error:
                failure = error
                if isinstance(error, RobotRefusedError):
                    break
            else:
                return None
        _logger.error("robot failed", extra={"robot": robot.name, "reason": str(failure)})
        return failure

    def _is_outdated(self, news: News) -> bool:
        return news.is_state and news.time < self._newest[news.credential]

    def _mail(self, news: list[News]) -> set[messages.Identity]:
        """What is to come again because the topic has not taken it."""
        missing = self._missing(MAIL, news)
        if not missing:
            return set()
        if not self._publish(messages.subject(missing), messages.text(missing)):
            return {each.identity for each in missing}
        self._remember(MAIL, missing)
        return set()

    def _send_to_robots(self, news: list[News]) -> tuple[set[messages.Identity], list[str]]:
        """What is to come again because a robot has not got it, and what is wrong with robots that no try would help."""
        try:
            found = list(self._robots.read())
        except RobotError as error:
            _logger.error("robots unknown", extra={"reason": str(error)})
            return {each.identity for each in news}, []
        problems: list[str] = []
        to_send: list[tuple[Robot, list[News]]] = []
        for name, robot in found:
            if isinstance(robot, RobotError):
                _logger.error("robot unusable", extra={"robot": name, "reason": str(robot)})
                problems.append(f"{name}: {robot}")
            elif missing := self._missing(name, messages.concerning(news, robot.accounts)):
                to_send.append((robot, missing))
        with ThreadPoolExecutor(WORKERS) as workers:
            failures = list(workers.map(lambda each: self.try_robot(each[0], messages.text(each[1])), to_send))
        left: set[messages.Identity] = set()
        for (robot, missing), failure in zip(to_send, failures, strict=True):
            if failure is None or isinstance(failure, RobotRefusedError):
                self._remember(robot.name, missing)
            else:
                left |= {each.identity for each in missing}
            if isinstance(failure, RobotRefusedError):
                problems.append(f"{robot.name}: {failure}")
        return left, problems

    def _missing(self, receiver: str, news: Iterable[News]) -> list[News]:
        by_identity = {each.identity: each for each in news if (receiver, each.identity) not in self._done}
        return list(by_identity.values())

    def _remember(self, receiver: str, news: Iterable[News]) -> None:
        self._done |= {(receiver, each.identity): None for each in news}
        while len(self._done) > MAX_REMEMBERED:
            del self._done[next(iter(self._done))]
