"""What the functions tell CloudWatch in a real run, held against what infra/cloudformation/monitoring.yaml watches."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from infra.local.simulated_wechat import Fault
from infra.stack import nested, schedules, translate
from tests.integration.wechats_calls import token_query
from tests.support.world import START, World

STACK = "production"
TOKEN = "/cgi-bin/token"
TICKET = "/cgi-bin/ticket/getticket"
MAIN_TICK = 6600

type Metric = tuple[str, frozenset[tuple[str, str]]]


@pytest.fixture
def told(world: World, capsys: pytest.CaptureFixture[str]) -> "Told":
    """Both functions as they are deployed, and the metrics that they write."""
    world.environment["STACK_NAME"] = STACK
    world.restart()
    return Told(world, capsys)


class Told:
    """The metrics that were told since the last look."""

    def __init__(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        self._world, self._capsys = world, capsys

    def __call__(self) -> list[tuple[Metric, float]]:
        return list(self._metrics())

    def of(self, name: str, **dimensions: str) -> list[float]:
        """The values of one metric."""
        wanted = (name, frozenset({"Stack": STACK, **dimensions}.items()))
        return [value for metric, value in self() if metric == wanted]

    def _metrics(self) -> Iterator[tuple[Metric, float]]:
        written = self._capsys.readouterr().out
        self._world.told.append(written)  # whatever is written must not hold a value
        for line in written.splitlines():
            written_down = json.loads(line)
            if "_aws" not in written_down:
                continue
            assert START * 1000 <= written_down["_aws"]["Timestamp"] <= self._world.clock() * 1000
            (directive,) = written_down["_aws"]["CloudWatchMetrics"]
            assert directive["Namespace"] == "WeChatTokenKeeper"
            (names,) = directive["Dimensions"]
            dimensions = frozenset((name, written_down[name]) for name in names)
            for metric in directive["Metrics"]:
                yield (metric["Name"], dimensions), written_down[metric["Name"]]


def watched() -> set[Metric]:
    """Every metric of ours that an alarm or a widget names, with its dimensions."""
    monitoring = nested(translate(), "Monitoring")["Resources"]
    found = []
    for resource in monitoring.values():
        properties = resource["Properties"]
        if resource["Type"] == "AWS::CloudWatch::Alarm":
            found += [one["MetricStat"]["Metric"] for one in properties.get("Metrics", []) if "MetricStat" in one]
            found += [properties] if "MetricName" in properties else []
        if resource["Type"] == "AWS::CloudWatch::Dashboard":
            for widget in dashboard(properties)["widgets"]:
                for namespace, name, *rest in widget["properties"].get("metrics", []):
                    names = [one for one in rest if isinstance(one, str)]
                    pairs = zip(names[::2], names[1::2], strict=True)
                    dimensions = [{"Name": dimension, "Value": value} for dimension, value in pairs]
                    found.append({"Namespace": namespace, "MetricName": name, "Dimensions": dimensions})
    return {
        (one["MetricName"], frozenset((each["Name"], stack_or(each["Value"])) for each in one["Dimensions"]))
        for one in found
        if one["Namespace"] == "WeChatTokenKeeper"
    }


def dashboard(properties: dict[str, Any]) -> dict[str, Any]:
    body, _ = properties["DashboardBody"]["Fn::Sub"]
    return json.loads(body)  # type: ignore[no-any-return]


def stack_or(value: Any) -> str:
    return STACK if value in ({"Ref": "Name"}, "${Name}") else str(value)


# --- what is watched is told, and nothing else


@pytest.mark.moto
def test_all_that_is_watched_is_told_in_a_run_and_nothing_else_is(world: World, told: Told) -> None:
    # Given an account with a ticket
    world.add_account(tickets=["jsapi"])
    # When failures of every class come, one after the other
    for errcode in (-1, 45009, 40164, 89503, 40002, 99999):
        world.clock.sleep(86400)
        world.wechat.fail(TOKEN, *[Fault.error(errcode)] * 2)
        world.wake("guard")
        world.clock.sleep(3600)
        world.wake("guard")
    world.clock.sleep(86400)
    world.wechat.fail(TICKET, *[Fault.error(40001)] * 2)
    world.wake("guard")
    # And somebody else kills a token, which is reported
    world.clock.sleep(60)
    token = world.token()
    world.wechat.kill(token)
    world.report(access_token=token)
    # And the table is down for a while
    world.token()
    with world.down("dynamodb"):
        world.clock.sleep(60)
        world.token()
    # And somebody else uses up the day's calls
    use_up_half_of_the_day(world)
    # Then
    assert {metric for metric, _ in told()} == watched()


def use_up_half_of_the_day(world: World) -> None:
    world.dynamodb.update_item(
        TableName=world.environment["TABLE_NAME"],
        Key={"pk": {"S": "credential#main"}, "sk": {"S": "access_token"}},
        UpdateExpression="SET spent.calls = :calls, spent.#day = :day",
        ExpressionAttributeNames={"#day": "day"},
        ExpressionAttributeValues={
            ":calls": {"N": "1200"},
            ":day": {"N": str((int(world.clock()) + 7000 + 8 * 3600) // 86400)},
        },
    )
    world.clock.sleep(7000)
    world.wake("guard")


def test_half_a_day_on_which_all_is_well_tells_renewals_only(world: World, told: Told) -> None:
    world.add_account(endpoint="stable_token", tickets=["jsapi"])
    told()

    for _ in range(12 * 60):
        world.clock.sleep(60)
        world.wake("guard")

    assert {name for (name, _), _ in told()} == {"Renewals"}


# --- the alarm of a dying credential


@pytest.mark.parametrize("errcode", [-1, 40164, 45009])
def test_the_alarm_goes_off_before_a_token_that_cannot_be_renewed_is_dead(
    world: World, told: Told, errcode: int
) -> None:
    # Given
    threshold = nested(translate(), "Monitoring")["Resources"]["CredentialAboutToDie"]["Properties"]["Threshold"]
    world.add_account()
    token = world.token()
    world.clock.now = START + MAIN_TICK
    world.wechat.fail(TOKEN, *[Fault.error(errcode)] * 100)
    told()

    # When
    world.wake("tick")
    while not any(left < threshold for left in told.of("SecondsLeft")):
        world.clock.sleep(60)
        world.wake("guard")
        assert world.clock() < START + 7200

    # Then there are two minutes at least in which the alarm can be heard
    world.clock.sleep(120)
    assert world.wechat.accepts(token)


def test_a_single_failure_is_no_alarm(world: World, told: Told) -> None:
    # Given
    threshold = nested(translate(), "Monitoring")["Resources"]["CredentialAboutToDie"]["Properties"]["Threshold"]
    world.add_account()
    world.clock.now = START + MAIN_TICK
    told()

    # When
    world.wechat.fail(TOKEN, Fault.error(-1))
    world.wake("tick")

    # Then
    (left,) = told.of("SecondsLeft")
    assert left == 7200 - MAIN_TICK - 60 > threshold


def test_what_was_never_fetched_cannot_die_and_fails_for_its_own_reason(world: World, told: Told) -> None:
    world.wechat.fail(TOKEN, Fault.error(40164))
    world.add_account()

    assert [(name, value) for (name, _), value in told()] == [("Failures", 1)]


# --- alarms say what to do


def test_every_alarm_says_what_to_do_first_and_reaches_the_topic() -> None:
    monitoring = nested(translate(), "Monitoring")["Resources"]
    alarms = {name: one["Properties"] for name, one in monitoring.items() if one["Type"] == "AWS::CloudWatch::Alarm"}

    assert len(alarms) >= 6
    for alarm in alarms.values():
        description = alarm["AlarmDescription"]
        text = description if isinstance(description, str) else description["Fn::Sub"]
        assert "Do first:" in text
        assert len(text) < 900  # CloudWatch takes 1024 characters, and names are filled in
        assert alarm["AlarmActions"] == [{"Ref": "Topic"}]
        assert alarm["AlarmName"]["Fn::Sub"].startswith("${Name}-")
    names = {alarm["AlarmName"]["Fn::Sub"].removeprefix("${Name}-") for alarm in alarms.values()}
    shown = dashboard(monitoring["Dashboard"]["Properties"])["widgets"][0]["properties"]["alarms"]
    assert {alarm.removeprefix("${Alarm}") for alarm in shown} == names


def test_no_alarm_that_hears_only_of_attempts_says_that_all_is_well(world: World, told: Told) -> None:
    # Given the alarms, and for how long each looks back
    monitoring = nested(translate(), "Monitoring")["Resources"]
    alarms = {name: one["Properties"] for name, one in monitoring.items() if one["Type"] == "AWS::CloudWatch::Alarm"}
    looks_back = max(alarms[name]["EvaluationPeriods"] * 60 for name in ("CredentialAboutToDie", "NeedsAPerson"))

    # When an administrator has refused the address, and the alarm looks back on silence
    world.wechat.fail(TOKEN, *[Fault.error(89507)] * 100)
    world.add_account()
    assert told.of("Failures", Class="confirmation") == [1]
    for _ in range(looks_back // 60):
        world.clock.sleep(60)
        world.wake("guard")
    assert told() == []

    # Then the account still fails, and nobody gets a mail that it does not
    assert world.health()["state"] == "never_fetched"
    ends_in_a_mail = {name for name, alarm in alarms.items() if alarm.get("OKActions") == [{"Ref": "Topic"}]}
    assert ends_in_a_mail == alarms.keys() - {"CredentialAboutToDie", "NeedsAPerson"}
    for name in ("CredentialAboutToDie", "NeedsAPerson"):
        assert "Silence is not recovery" in alarms[name]["AlarmDescription"]["Fn::Sub"]


def test_the_query_in_a_description_finds_the_failures_by_the_words_of_the_log(world: World, told: Told) -> None:
    # Given
    description = nested(translate(), "Monitoring")["Resources"]["NeedsAPerson"]["Properties"]["AlarmDescription"]
    query = description["Fn::Sub"].partition(": filter ")[2]

    # When
    world.wechat.fail(TOKEN, Fault.error(40164, "invalid ip 8.149.1.2"))
    summary = world.add_account()

    # Then
    (failed,) = summary["failed"]
    assert 'message = "failed"' in query
    assert f'"{failed["class"]}"' in query
    shown = query.partition("fields ")[2].partition(" |")[0].split(", ")
    assert set(shown) - {"@timestamp"} <= set(failed)


def test_a_refused_key_is_counted_and_other_refusals_are_not(world: World, caplog: pytest.LogCaptureFixture) -> None:
    # Given the filter that counts, and the alarm that watches its metric
    monitoring = nested(translate(), "Monitoring")["Resources"]
    counted, alarm = (monitoring[name]["Properties"] for name in ("RefusedKeys", "KeysAreTried"))
    (metric,) = counted["MetricTransformations"]
    assert (alarm["Namespace"], alarm["MetricName"]) == (metric["MetricNamespace"], metric["MetricName"])
    assert "DefaultValue" not in metric
    terms = dict(re.findall(r"\(\$\.(\w+) = ([^)]+)\)", counted["FilterPattern"]))
    wanted = {name: json.loads(value) for name, value in terms.items()}
    assert wanted.keys() == {"message", "errcode"}

    # When a consumer's requests are refused: the first for its key, the others for something else
    key = world.add_consumer("shop", ["*"])
    caplog.clear()
    for asked in (token_query("wtk_" + "A" * 43), token_query(key, "wx0"), {"grant_type": "password"}):
        world.ask("GET /cgi-bin/token", **asked)

    # Then one line is counted: Lambda's JSON log has the fields of a record beside its message
    lines = [{"message": record.getMessage(), **vars(record)} for record in caplog.records]
    refused = [line for line in lines if line["message"] == "refused"]
    assert len(refused) == 3
    assert [wanted.items() <= line.items() for line in refused] == [True, False, False]


def test_the_heartbeat_is_expected_less_often_than_the_schedules_beat() -> None:
    template = translate()
    heartbeat = nested(template, "Monitoring")["Resources"]["Heartbeat"]["Properties"]

    assert min(schedule.rate for schedule in schedules(template)) * 5 <= heartbeat["Period"]
    assert heartbeat["TreatMissingData"] == "breaching"
    assert heartbeat["Dimensions"] == [{"Name": "FunctionName", "Value": {"Ref": "RefreshFunctionName"}}]


def test_nobody_is_written_to_without_an_address() -> None:
    for address, expected in (("", True), ("ops@example.com", False)):
        monitoring = nested(translate({"AlarmEmail": address}), "Monitoring")
        (given, nothing) = monitoring["Conditions"]["HasAlarmEmail"]["Fn::Not"][0]["Fn::Equals"]
        assert (given == nothing) is expected
        assert monitoring["Resources"]["Mail"]["Condition"] == "HasAlarmEmail"
        assert monitoring["Resources"]["Mail"]["Properties"]["Endpoint"] == address
