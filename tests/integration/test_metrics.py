"""What infra/cloudformation/monitoring.yaml watches and shows, checked against what the functions write in a real run."""

import json
import re
from typing import Any

import pytest

from infra.local.simulated_wechat import Fault
from infra.sam_template import nested, schedules, translate
from tests.integration.wechats_calls import token_query
from tests.support.world import World

TOKEN = "/cgi-bin/token"
MAIN_TICK = 6600


def dashboard(properties: dict[str, Any]) -> dict[str, Any]:
    body, _ = properties["DashboardBody"]["Fn::Sub"]
    return json.loads(body)  # type: ignore[no-any-return]


def monitoring() -> dict[str, Any]:
    resources: dict[str, Any] = nested(translate(), "Monitoring")["Resources"]
    return resources


# --- what is measured


def test_only_the_keys_that_are_tried_have_a_metric_of_their_own() -> None:
    # Given every metric that an alarm or a widget names
    alarms = [item["Properties"] for item in monitoring().values() if item["Type"] == "AWS::CloudWatch::Alarm"]
    widgets = dashboard(monitoring()["Dashboard"]["Properties"])["widgets"]
    shown = {metric[0] for widget in widgets for metric in widget["properties"].get("metrics", [])}
    # Then AWS measures it for nothing, except one, which is emitted only when something happens
    assert {alarm["Namespace"] for alarm in alarms} | shown <= {
        *("AWS/Lambda", "AWS/SQS", "AWS/ApiGateway", "WeChatTokenKeeper/Log")
    }
    assert [a["AlarmName"]["Fn::Sub"] for a in alarms if a["Namespace"] == "WeChatTokenKeeper/Log"] == [
        "${Name}-keys-are-tried"
    ]


def test_what_the_dashboard_asks_the_log_is_in_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    # Given the queries
    widgets = dashboard(monitoring()["Dashboard"]["Properties"])["widgets"]
    queries = [widget["properties"]["query"] for widget in widgets if widget["type"] == "log"]
    assert len(queries) == 4
    asked = {name for query in queries for name in re.findall(r"by ([\w, ]+?) \|", query) for name in name.split(", ")}
    asked |= {name for query in queries for name in re.findall(r"max\((\w+)\)", query)}
    messages = {name for query in queries for name in re.findall(r"'(renewed|failed|verified)'", query)}
    # When a token is renewed, reported, and cannot be renewed
    world.add_account()
    world.clock.sleep(100)
    world.report(access_token=world.token())
    world.clock.sleep(MAIN_TICK)
    world.wechat.fail(TOKEN, Fault.error(40164))
    world.wake("tick")
    # Then
    lines = [{"message": record.getMessage(), **vars(record)} for record in caplog.records]
    assert messages <= {line["message"] for line in lines}
    found = {name for line in lines if line["message"] in messages for name in line}
    assert asked <= found


# --- alarms say what to do


def test_every_alarm_says_what_to_do_first_and_reaches_the_topic() -> None:
    monitoring = nested(translate(), "Monitoring")["Resources"]
    alarms = {name: item["Properties"] for name, item in monitoring.items() if item["Type"] == "AWS::CloudWatch::Alarm"}

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


def test_the_heartbeat_period_spans_five_schedules() -> None:
    template = translate()
    heartbeat = nested(template, "Monitoring")["Resources"]["Heartbeat"]["Properties"]

    assert min(schedule.rate for schedule in schedules(template)) * 5 <= heartbeat["Period"]
    assert heartbeat["TreatMissingData"] == "breaching"
    assert heartbeat["Dimensions"] == [{"Name": "FunctionName", "Value": {"Ref": "RefreshFunctionName"}}]


def test_no_mail_is_sent_without_an_address() -> None:
    for address, expected in (("", True), ("ops@example.com", False)):
        monitoring = nested(translate({"AlarmEmail": address}), "Monitoring")
        (given, nothing) = monitoring["Conditions"]["HasAlarmEmail"]["Fn::Not"][0]["Fn::Equals"]
        assert (given == nothing) is expected
        assert monitoring["Resources"]["Mail"]["Condition"] == "HasAlarmEmail"
        assert monitoring["Resources"]["Mail"]["Properties"]["Endpoint"] == address
