"""What people get to read, and where: the real NotifyFunction, with group robots on loopback that check what they are sent."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws

import notify
from infra.local.http_server import Server
from infra.local.simulated_robots import SIGNING_SECRET, SimulatedRobots
from infra.local.simulated_wechat import Fault
from tests.support.world import APPID, REGION, SECRET, START, Clock, World
from token_keeper.model import rfc3339
from token_keeper.notify.robots import MAX_BYTES, PATHS, RobotError, parse_robot

PATH = "/wechat-token-keeper/notifications"
TOKEN = "/cgi-bin/token"
WECOM, FEISHU, DINGTALK = "/cgi-bin/webhook/send?key=", "/open-apis/bot/v2/hook/", "/robot/send?access_token="


class People:
    """The robots and the mail topic of a stack, and the function that writes to them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.robots = SimulatedRobots(self.clock)
        self._server = Server(self.robots)
        self._server.start()
        self.stop = self._server.stop
        session = boto3.Session("test", "test", region_name=REGION)
        self._ssm, sns, self._sqs = session.client("ssm"), session.client("sns"), session.client("sqs")
        topic = sns.create_topic(Name="alarms")["TopicArn"]
        self._mailbox = self._sqs.create_queue(QueueName="mail")["QueueUrl"]
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=f"arn:aws:sqs:{REGION}:123456789012:mail")
        urls = {f"{name.upper()}_ROBOT_URL": self._server.url for name in PATHS}
        self.environment = {"TOPIC_ARN": topic, "NOTIFICATIONS_PATH": PATH, **urls}
        self._client = session.client
        self.restart()

    def add_robot(self, name: str, address: str, **record: Any) -> None:
        """A robot at that path of the simulated platforms."""
        value = json.dumps({"url": f"{self._server.url}{address}", **record})
        self._ssm.put_parameter(Name=f"{PATH}/{name}", Value=value, Type="SecureString")

    def put_parameter(self, name: str, value: str) -> None:
        self._ssm.put_parameter(Name=f"{PATH}/{name}", Value=value, Type="SecureString")

    def deliver(self, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Deliver what the rule lets through of these events, as one batch of the queue. Returns what is to come again."""
        wanted = [entry for entry in events if entry["DetailType"] != "Credential Renewed"]
        if not wanted:
            return []
        bodies = [
            {"detail-type": entry["DetailType"], "time": rfc3339(entry["Time"]), "detail": entry["Detail"]}
            for entry in wanted
        ]
        records = [{"messageId": str(number), "body": json.dumps(body)} for number, body in enumerate(bodies)]
        reply = self._handler({"Records": records}, None)
        return [wanted[int(failure["itemIdentifier"])] for failure in reply["batchItemFailures"]]

    def restart(self) -> None:
        """A cold start: a new instance of the function, which remembers nothing."""
        self._handler = notify.create_handler(self.environment, self.clock, self._client)

    def test(self, name: str) -> dict[str, Any]:
        return self._handler({"test": name}, None)

    def mails(self) -> list[dict[str, Any]]:
        """The mails since the last look."""
        got = self._sqs.receive_message(QueueUrl=self._mailbox, MaxNumberOfMessages=10).get("Messages", [])
        for message in got:
            self._sqs.delete_message(QueueUrl=self._mailbox, ReceiptHandle=message["ReceiptHandle"])
        return [json.loads(message["Body"]) for message in got]

    def written(self) -> list[tuple[str, str]]:
        """What the robots have written since the last look: the robot's key, and the text."""
        messages, self.robots.messages = self.robots.messages, []
        return messages


@pytest.fixture
def people() -> Iterator[People]:
    with mock_aws():
        made = People()
        yield made
        made.stop()


def failing(account: str = "main", at: int = START, **detail: Any) -> dict[str, Any]:
    trouble = {
        **{"stack": "production", "account": account, "credential": "access_token", "fingerprint": None},
        **{"expires_at": None, "class": "configuration", "errcode": 40125, "errmsg": "invalid appsecret"},
        **{"remedy": "Copy it again.", "next_attempt_at": "2026-09-21T14:18:20Z", "usable_until": None},
    }
    return {"DetailType": "Credential Failing", "Time": at, "Detail": trouble | detail}


def recovered(account: str = "main", at: int = START, **detail: Any) -> dict[str, Any]:
    well = {
        **{"stack": "production", "account": account, "credential": "access_token"},
        **{"fingerprint": "9f86d081884c7d65", "expires_at": "2026-09-21T16:13:20Z"},
    }
    return {"DetailType": "Credential Recovered", "Time": at, "Detail": well | detail}


# --- from cause to message


def test_a_wrong_secret_and_its_correction_are_two_messages(world: World, people: People) -> None:
    # Given an account that is kept, and a group
    people.add_robot("ops", f"{WECOM}ops")
    world.add_account(tickets=["jsapi"])
    world.clock.sleep(100)
    people.deliver(world.sent)
    world.sent.clear()
    # When its secret is wrong, and nothing else happens for two minutes
    world.secrets.add("f" * 32)
    record = {"appid": APPID, "secret": "f" * 32, "tickets": ["jsapi"]}
    world.put_parameter("main", json.dumps(record))
    for _ in range(2):
        world.clock.sleep(60)
        world.wake("guard")
    events, world.sent = world.sent, []
    people.deliver(events)
    # Then the group reads what WeChat said, what to do, and until when the token works
    ((_, text),) = people.written()
    assert "main" in text
    assert "40125" in text or "40001" in text
    assert "token-keeper accounts set-secret" in text
    assert "可用至 | works until 09-22 00:13:20 (UTC+8)" in text
    (mail,) = people.mails()
    assert mail["Subject"] == "WeChat tokens failing: main"
    assert mail["Message"] == text
    # When
    world.put_parameter("main", json.dumps(record | {"secret": SECRET}))
    people.deliver(world.sent)
    # Then
    ((_, text),) = people.written()
    assert "已恢复 | Recovered" in text
    assert "main" in text


def test_100_accounts_behind_a_blocked_address_are_one_message(world: World, people: People) -> None:
    # Given
    people.add_robot("ops", f"{FEISHU}ops")
    world.wechat.fail(TOKEN, *[Fault.error(40164, "invalid ip 8.149.1.2, not in whitelist")] * 100)
    # When
    for number in range(100):
        world.add_account(f"shop-{number:03}", appid=f"wx{number:016}")
    people.deliver(world.sent)
    # Then it names ten and counts the rest
    ((_, text),) = people.written()
    assert text.count("• shop-") == 10
    assert "共 100 个帐号 | 100 accounts in all" in text
    assert text.count("8.149.1.2") >= 1
    assert len(text.encode()) < MAX_BYTES["wecom"]


def test_a_token_that_another_client_kills_is_one_message(world: World, people: People) -> None:
    # Given
    people.add_robot("ops", f"{DINGTALK}ops")
    world.add_account()
    world.clock.sleep(100)
    world.wechat.kill(world.token())
    # When
    world.wake("probe")
    people.deliver(world.sent)
    # Then
    ((_, text),) = people.written()
    assert "stable_token" in text
    assert "被提前作废" in text


def test_a_failing_account_that_is_removed_has_not_recovered(world: World, people: People) -> None:
    # Given
    people.add_robot("ops", f"{WECOM}ops")
    world.wechat.fail(TOKEN, Fault.error(40013))
    world.add_account()
    # When
    world.delete_parameter("main")
    world.sent = world.sent[-1:]
    people.deliver(world.sent)
    # Then people get to read that, too
    ((_, text),) = people.written()
    assert "已移除，不再维护 | Removed, kept no longer" in text
    assert "🟢" not in text
    (mail,) = people.mails()
    assert mail["Subject"] == "WeChat tokens removed: main"


# --- robots


@pytest.mark.parametrize("address", [WECOM, FEISHU, DINGTALK])
def test_each_platform_gets_the_message_in_its_form(people: People, address: str) -> None:
    people.add_robot("ops", f"{address}group")
    people.deliver([failing()])
    ((robot, text),) = people.written()
    assert robot == "group"
    assert "40125 invalid appsecret" in text
    assert people.test("ops") == {"delivered": True, "reason": None}


def test_wechats_message_mentions_no_one(people: People) -> None:
    people.add_robot("ops", f"{FEISHU}ops")
    # When WeChat's message holds what 飞书 reads as a mention of all
    people.deliver([failing(errmsg='<at user_id="all"></at>')])
    # Then the group reads it as text
    ((_, text),) = people.written()
    assert "<at" not in text


@pytest.mark.parametrize("address", [FEISHU, DINGTALK])
def test_a_signed_request_is_signed_as_documented(people: People, address: str) -> None:
    # Given a robot that wants signatures, with the right secret, a wrong one, and none
    people.clock.now = START + 0.5
    people.add_robot("right", f"{address}a-signed", secret=SIGNING_SECRET)
    people.add_robot("wrong", f"{address}b-signed", secret="SECother")
    people.add_robot("none", f"{address}c-signed")
    # Then
    assert people.test("right")["delivered"]
    assert [robot for robot, _ in people.written()] == ["a-signed"]
    for name in ("wrong", "none"):
        response = people.test(name)
        assert not response["delivered"]
        assert ("19021" if address == FEISHU else "310000") in response["reason"]


@pytest.mark.parametrize("address", [WECOM, FEISHU, DINGTALK])
def test_a_robot_that_refuses_for_good_is_not_tried_again(
    people: People, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    # Given a robot that was deleted, and one that works
    people.add_robot("gone", f"{address}broken")
    people.add_robot("ops", f"{WECOM}ops")
    # When
    left = people.deliver([failing()])
    # Then the others get the message, once, and the queue delivers nothing again
    assert left == []
    assert [robot for robot, _ in people.written()] == ["ops"]
    assert people.robots.refused == ["broken"]
    # And the log, which `token-keeper doctor` reads, and a mail say what is wrong, and what to do
    (failed,) = [record for record in caplog.records if record.message == "robot failed"]
    assert vars(failed)["robot"] == "gone"
    assert "HTTP 200, code" in vars(failed)["reason"]
    _, mail = people.mails()
    assert mail["Subject"] == "WeChat tokens: group robots that get no message"
    assert "gone: it refused the message" in mail["Message"]
    assert "add it with its new address" in mail["Message"]
    # But not each time
    people.deliver([failing(at=START + 300)])
    assert len(people.mails()) == 1


@pytest.mark.parametrize("address", [WECOM, FEISHU, DINGTALK])
def test_a_robot_that_is_busy_gets_the_message_later(people: People, address: str) -> None:
    # Given a robot that has had too many messages this minute, one that works, and a mail
    people.add_robot("storm", f"{address}busy")
    people.add_robot("shops", f"{WECOM}shops", accounts=["shop-*"])
    people.add_robot("ops", f"{WECOM}ops", accounts=["main"])
    # When
    left = people.deliver([failing(), failing("shop-1")])
    # Then all is to be delivered again, and the others get it at once
    assert [entry["Detail"]["account"] for entry in left] == ["main", "shop-1"]
    assert sorted(robot for robot, _ in people.written()) == ["ops", "shops"]
    assert len(people.mails()) == 1
    # When the queue does so
    people.robots.busy = False
    left = people.deliver(left)
    # Then the one that has not got it gets it, and no other
    assert left == []
    ((robot, text),) = people.written()
    assert robot == "busy"
    assert "main" in text
    assert "shop-1" in text
    assert people.mails() == []


def test_only_what_a_busy_robot_waits_for_is_delivered_again(people: People) -> None:
    people.add_robot("shops", f"{WECOM}busy", accounts=["shop-*"])
    assert people.deliver([failing(), failing("shop-1")]) == [failing("shop-1")]


def test_a_new_instance_tells_all_again_rather_than_none(people: People) -> None:
    people.add_robot("storm", f"{WECOM}busy")
    people.add_robot("ops", f"{WECOM}ops")
    left = people.deliver([failing()])
    people.written()
    people.restart()
    people.robots.busy = False
    assert people.deliver(left) == []
    assert sorted(robot for robot, _ in people.written()) == ["busy", "ops"]


def test_an_event_that_comes_twice_is_told_once(people: People) -> None:
    people.add_robot("ops", f"{WECOM}ops")
    people.deliver([failing(), failing()])
    ((_, text),) = people.written()
    people.deliver([failing()])
    assert text.count("main") == 1
    assert people.written() == []
    # But the same failure at another time is another one
    people.deliver([failing(at=START + 1)])
    assert len(people.written()) == 1


# --- in order


def test_a_message_says_when_it_happened_in_beijing(people: People) -> None:
    people.add_robot("ops", f"{WECOM}ops")
    people.clock.sleep(7200)
    people.deliver([failing("a", at=START + 65), failing("b", at=START)])
    ((_, text),) = people.written()
    assert "时间 | Time: 09-21 22:13:20 (UTC+8) – 09-21 22:14:25 (UTC+8)" in text


def test_an_old_failure_is_no_alarm_after_the_recovery(people: People) -> None:
    # Given a recovery that people have read of
    people.add_robot("ops", f"{WECOM}ops")
    people.deliver([recovered(at=START + 300)])
    people.written()
    people.mails()
    # When the failure before it comes late, and a new failure of another credential with it
    people.deliver([failing(at=START), failing(at=START, credential="jsapi_ticket")])
    # Then the first is shown as what it is
    ((_, text),) = people.written()
    now, _, before = text.partition("⚪")
    assert "🔴" in now
    assert "jsapi_ticket" in now
    assert "access_token" not in now
    assert "曾续期失败，此后已恢复 | Failed earlier, has recovered since" in before
    assert "处理 | Do" not in before
    assert "09-21 22:13:20 (UTC+8)" in before
    # And alone it is no alarm at all
    people.deliver([failing(at=START - 1)])
    ((_, text),) = people.written()
    assert "🔴" not in text
    assert [mail["Subject"] for mail in people.mails()] == [
        "WeChat tokens failing: main",
        "WeChat tokens earlier: main",
    ]


def test_an_old_recovery_does_not_hide_a_failure(people: People) -> None:
    people.add_robot("ops", f"{WECOM}ops")
    # When both come in one batch
    people.deliver([recovered(at=START), failing(at=START + 300)])
    # Then
    ((_, text),) = people.written()
    assert "🟢" not in text
    assert text.index("🔴") < text.index("Recovered earlier, has failed again since")
    (mail,) = people.mails()
    assert mail["Subject"] == "WeChat tokens failing: main"


def test_a_group_gets_the_messages_of_its_accounts_only(people: People) -> None:
    people.add_robot("shops", f"{WECOM}shops", accounts=["shop-*"])
    people.add_robot("crm", f"{WECOM}crm", accounts=["crm"])
    people.deliver([failing("shop-1"), failing("main")])
    ((robot, text),) = people.written()
    assert robot == "shops"
    assert "shop-1" in text
    assert "main" not in text


def test_an_unusable_record_keeps_no_other_group_from_being_told(people: People) -> None:
    people.put_parameter("bad", "{")
    people.put_parameter("elsewhere", json.dumps({"url": "https://example.com/cgi-bin/webhook/send?key=1"}))
    people.add_robot("ops", f"{WECOM}ops")
    people.deliver([failing()])
    assert [robot for robot, _ in people.written()] == ["ops"]
    assert "not a robot's" in people.test("elsewhere")["reason"]
    assert people.test("unknown") == {"delivered": False, "reason": "there is no robot of that name"}


def test_a_robot_that_does_not_respond_shows_no_address(people: People, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    people.add_robot("ops", f"{WECOM}s3cret-key")
    people.stop()
    assert people.deliver([failing()]) == [failing()]
    said = f"{caplog.text} {[vars(record) for record in caplog.records]}"
    assert "s3cret-key" not in said
    assert "robot failed" in said


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/cgi-bin/webhook/send?key=1",
        "http://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=1",
        "https://qyapi.weixin.qq.com.example.com/cgi-bin/webhook/send?key=1",
        "https://qyapi.weixin.qq.com@example.com/cgi-bin/webhook/send?key=1",
        "https://qyapi.weixin.qq.com/cgi-bin/gettoken?corpid=1",
        "https://open.feishu.cn/cgi-bin/webhook/send?key=1",
        "https://open.feishu.cn/open-apis/bot/v2/hook/1 HTTP/1.1",
        "https://oapi.dingtalk.com/robot/send?access_token=1\r\nHost: example.com",
        "",
    ],
)
def test_other_addresses_are_refused_and_not_repeated(url: str) -> None:
    origins = {
        "wecom": "https://qyapi.weixin.qq.com",
        "feishu": "https://open.feishu.cn",
        "dingtalk": "https://oapi.dingtalk.com",
    }
    with pytest.raises(RobotError) as raised:
        parse_robot("ops", json.dumps({"url": url}), origins)
    assert not url or url not in str(raised.value)
    robot = parse_robot("ops", json.dumps({"url": f"{origins['feishu']}{FEISHU}s3cret", "secret": "k3y"}), origins)
    assert "s3cret" not in repr(robot)
    assert "k3y" not in repr(robot)


def test_a_long_message_is_cut_to_what_wecom_takes(people: People) -> None:
    people.add_robot("ops", f"{WECOM}ops")
    people.deliver([failing(f"a{number}", remedy=f"处理 {number} " * 50) for number in range(9)])
    ((_, text),) = people.written()
    assert len(text.encode()) <= MAX_BYTES["wecom"]
    assert text.endswith("…")
