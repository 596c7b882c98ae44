"""The rules of infra/docs/notifications.md, deployed from the document: which of the stack's events reach their targets."""

import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws
from samtranslator.parser.parser import Parser  # type: ignore[import-untyped]
from samtranslator.translator.translator import Translator  # type: ignore[import-untyped]
from samtranslator.yaml_helper import yaml_parse  # type: ignore[import-untyped]

from infra.local.simulated_wechat import Fault
from tests.support.documents import ROOT, blocks
from tests.support.world import REGION, World

DOCUMENT = ROOT / "infra" / "docs" / "notifications.md"
ACCOUNT, OTHER_ACCOUNT = "123456789012", "210987654321"
CODE = {"Runtime": "python3.13", "Handler": "index.handler", "InlineCode": "# drops its cache"}


@pytest.fixture
def made() -> Iterator[dict[str, str]]:
    """What the document's examples make: names and addresses by logical id."""
    with mock_aws():
        cloudformation = boto3.client("cloudformation", region_name=REGION)
        cloudformation.create_stack(
            StackName="rules", TemplateBody=json.dumps(documented()), Capabilities=["CAPABILITY_IAM"]
        )
        (stack,) = cloudformation.describe_stacks(StackName="rules")["Stacks"]
        assert stack["StackStatus"] == "CREATE_COMPLETE"
        resources = cloudformation.describe_stack_resources(StackName="rules")["StackResources"]
        yield {
            each["LogicalResourceId"]: each["PhysicalResourceId"] for each in resources if "PhysicalResourceId" in each
        }


def documented() -> dict[str, Any]:
    """The document's examples as one template, translated by SAM. The function gets the code that the document leaves out; moto
    has no policies of queues.
    """
    resources: dict[str, Any] = {}
    for block in blocks(DOCUMENT.read_text(encoding="utf-8"), "yaml"):
        resources |= yaml_parse(f"Resources:\n{block}")["Resources"]
    resources["DropCache"]["Properties"] |= CODE
    del resources["EventsPolicy"]
    template = {"Transform": "AWS::Serverless-2016-10-31", "Resources": resources}
    translator = Translator({}, Parser(), boto_session=boto3.Session(region_name=REGION))
    translated: dict[str, Any] = translator.translate(template, {})
    translator.metrics.publish()
    return translated


def add_queue(session: Any, rule: str) -> str:
    """A queue as the rule's one target: its URL."""
    events, sqs = (session.client(service, region_name=REGION) for service in ("events", "sqs"))
    targets = [target["Id"] for target in events.list_targets_by_rule(Rule=rule)["Targets"]]
    if targets:
        events.remove_targets(Rule=rule, Ids=targets)
    url: str = sqs.create_queue(QueueName="instead")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events.put_targets(Rule=rule, Targets=[{"Id": "queue", "Arn": arn}])
    return url


def session_in(account: str) -> Any:
    """A session in an AWS account."""
    sts = boto3.client("sts", region_name=REGION)
    role = sts.assume_role(RoleArn=f"arn:aws:iam::{account}:role/test", RoleSessionName="test")["Credentials"]
    return boto3.Session(role["AccessKeyId"], role["SecretAccessKey"], role["SessionToken"], region_name=REGION)


def arrived(session: Any, url: str) -> list[tuple[str, str]]:
    """What came to a queue: what happened, and to which account."""
    got = session.client("sqs").receive_message(QueueUrl=url, MaxNumberOfMessages=10)
    bodies = [json.loads(message["Body"]) for message in got.get("Messages", [])]
    return [(body["detail-type"].removeprefix("Credential "), body["detail"]["account"]) for body in bodies]


def test_each_rule_gets_what_the_document_says(world: World, made: dict[str, str]) -> None:
    # Given the rules, with a queue in place of the function, which moto does not run, and one behind the other account's bus
    own, other = session_in(ACCOUNT), session_in(OTHER_ACCOUNT)
    of_function = add_queue(own, made["DropCacheRenewed"])
    other.client("events").put_rule(Name="all", EventPattern=json.dumps({"detail": {"stack": [{"exists": True}]}}))
    of_other_account = add_queue(other, "all")
    # When the accounts of the document's stack fail and are renewed, and one of another stack, too
    world.environment["STACK_NAME"] = "wechat-token-keeper"
    world.restart()
    world.wechat.fail("/cgi-bin/token", Fault.error(40164))
    for name in ("shop-1", "main", "crm"):
        world.add_account(name, appid=f"wx{name:0<16}")
    world.environment["STACK_NAME"] = "staging"
    world.restart()
    world.clock.sleep(100)
    world.invoke({"renew": {"account": "main", "credential": "access_token", "rotate": True}})
    assert len(world.sent) == 4
    entries = [{**entry, "Detail": json.dumps(entry["Detail"])} for entry in world.sent]
    assert own.client("events").put_events(Entries=entries)["FailedEntryCount"] == 0
    # Then
    assert arrived(own, of_function) == [("Renewed", "main")]
    assert arrived(own, made["Events"]) == [("Failing", "shop-1")]
    assert arrived(other, of_other_account) == [("Failing", "shop-1"), ("Renewed", "main"), ("Renewed", "crm")]
