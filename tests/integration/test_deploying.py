"""template.yaml, translated by SAM, deployed into moto's CloudFormation. What moto leaves out is checked against the
translated template in tests/unit/test_template.py."""

import json
from typing import Any

import boto3
import pytest
from moto import mock_aws

from infra.local.embedded_aws import for_moto
from infra.sam_template import translate

REGIONS = ("us-east-1", "cn-north-1")
EVERYTHING = {"EgressMode": "managed", "AlarmEmail": "ops@example.com"}


def deploy(name: str, region: str, parameters: dict[str, str]) -> dict[str, str]:
    """Deploy a stack, and return its outputs."""
    template = for_moto(translate(parameters, region=region), api_url="https://api.invalid", region=region)
    cloudformation = boto3.client("cloudformation", region_name=region)
    cloudformation.create_stack(StackName=name, TemplateBody=json.dumps(template), Capabilities=["CAPABILITY_IAM"])
    stack: Any = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize(
    "parameters", [{}, EVERYTHING, {"EgressMode": "instance"}], ids=["defaults", "everything", "instance"]
)
@mock_aws
def test_two_stacks_live_side_by_side(region: str, parameters: dict[str, str]) -> None:
    # When
    blue, green = (deploy(name, region, parameters) for name in ("blue", "green"))

    # Then
    own = {"TokenTableName", "RefreshFunctionName", "NotifyFunctionName", "AlarmTopicArn", "DeadLetterQueueUrl"}
    own |= {"EgressIp"} if parameters else set()
    assert blue.keys() == green.keys() == own | {"ApiUrl", "AccountsPath", "NotificationsPath"}
    assert not [name for name in own if blue[name] == green[name]]
    tables = boto3.client("dynamodb", region_name=region).list_tables()["TableNames"]
    assert set(tables) == {blue["TokenTableName"], green["TokenTableName"]}
    partition = "aws-cn" if region.startswith("cn") else "aws"
    assert blue["AlarmTopicArn"].startswith(f"arn:{partition}:sns:{region}:")


@pytest.mark.parametrize("region", REGIONS)
@mock_aws
def test_an_instance_is_one_in_its_interfaces_zone(region: str) -> None:
    # When
    outputs = deploy("blue", region, {"EgressMode": "instance", "EgressZone": f"{region}b"})

    # Then the address is an output
    ec2 = boto3.client("ec2", region_name=region)
    (address,) = ec2.describe_addresses()["Addresses"]
    assert address["PublicIp"] == outputs["EgressIp"]
    # And the group has one instance where the interface of the route is
    (group,) = boto3.client("autoscaling", region_name=region).describe_auto_scaling_groups()["AutoScalingGroups"]
    assert len(group["Instances"]) == group["MinSize"] == group["MaxSize"] == 1
    (interface,) = [
        route["NetworkInterfaceId"]
        for table in ec2.describe_route_tables()["RouteTables"]
        for route in table["Routes"]
        if "NetworkInterfaceId" in route
    ]
    (described,) = ec2.describe_network_interfaces(NetworkInterfaceIds=[interface])["NetworkInterfaces"]
    assert group["AvailabilityZones"] == [described["AvailabilityZone"]] == [f"{region}b"]
    assert not ec2.describe_nat_gateways()["NatGateways"]


@pytest.mark.parametrize("region", REGIONS)
@mock_aws
def test_managed_egress_outputs_the_one_address_of_all_calls(region: str) -> None:
    # When
    outputs = deploy("blue", region, EVERYTHING)

    # Then
    ec2 = boto3.client("ec2", region_name=region)
    (gateway,) = ec2.describe_nat_gateways()["NatGateways"]
    (address,) = gateway["NatGatewayAddresses"]
    assert (
        ec2.describe_addresses(AllocationIds=[address["AllocationId"]])["Addresses"][0]["PublicIp"]
        == (outputs["EgressIp"])
    )
    assert len(ec2.describe_addresses()["Addresses"]) == 1


@mock_aws
def test_a_new_stack_of_the_same_name_ignores_the_retained_table() -> None:
    # Given
    first = deploy("blue", "us-east-1", {})
    left_behind = boto3.client("dynamodb", region_name="us-east-1").describe_table(TableName=first["TokenTableName"])
    assert left_behind["Table"]["DeletionProtectionEnabled"]

    # When
    boto3.client("cloudformation", region_name="us-east-1").delete_stack(StackName="blue")
    second = deploy("blue", "us-east-1", {})

    # Then
    assert second["TokenTableName"] != first["TokenTableName"]
