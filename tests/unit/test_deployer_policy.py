"""infra/docs/deployer-policy.json, checked against what AWS's own schemas of the deployed resource types say that they need."""

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import pytest

from infra.sam_template import TEMPLATE, parse, translate
from tests.support.tools import needed

POLICY = TEMPLATE.parent / "infra" / "docs" / "deployer-policy.json"
LARGEST = 6144
"""Characters without white space: IAM's limit for a managed policy."""

NOT_USED = (
    # features of a type that the templates do not use
    *("*VpnGateway*", "*Lattice*", "vpc-lattice:*", "vpce:*", "elasticloadbalancing:*", "managed-fleets:*", "s3*:*"),
    "codedeploy:*",
    "ssm:Get[*]",  # written so in the schema of the group: it reads the image's name
    *("firehose:*", "kinesis:*", "elasticfilesystem:*", "ec2:*Ipv6*", "ec2:*Private*Addresses", "ec2:*PrivateNat*"),
    *("ec2:AcceptAddressTransfer", "ec2:*NatGatewayAddress", "ec2:*SubnetCidrBlock", "ec2:ModifyVpcTenancy"),
    *("ec2:*EncryptionControl*", "ec2:ModifyPublicIpDnsNameOptions", "ec2:ModifySubnetAttribute"),
    *("autoscaling:*Traffic*", "autoscaling:*LoadBalancer*", "autoscaling:*Lifecycle*", "autoscaling:*Notification*"),
    *("autoscaling:*Metrics*", "autoscaling:*Processes", "autoscaling:*InstanceRefresh"),
    *("dynamodb:*Replica", "dynamodb:*Import*", "dynamodb:*ableKinesis*", "dynamodb:UpdateKinesis*"),
    *("dynamodb:PutResourcePolicy", "dynamodb:DeleteResourcePolicy", "dynamodb:UpdateContributorInsights"),
    *("lambda:*CodeSigning*", "lambda:*Layer*", "lambda:PutFunctionConcurrency", "lambda:DeleteFunctionConcurrency"),
    *("lambda:PassCapacityProvider", "lambda:PutFunction*Config", "lambda:*RuntimeAlias", "lambda:PublishVersion"),
    *("lambda:PutRuntimeManagementConfig", "lambda:*ProvisionedConcurrency*", "iam:*PermissionsBoundary"),
    # what only a table that is imported or copied needs
    *(
        f"dynamodb:{call}"
        for call in ("BatchWriteItem", "DeleteItem", "GetItem", "PutItem", "Query", "Scan", "UpdateItem")
    ),
    *("logs:DeleteResourcePolicy", "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"),
    "kms:*",  # with a key of one's own: infra/docs/deploy.md
)


def statements() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads(POLICY.read_text(encoding="utf-8"))["Statement"]
    return loaded


def types() -> set[str]:
    resources = [*translate()["Resources"].values()]
    for nested in ("egress.yaml", "monitoring.yaml"):
        resources += parse(TEMPLATE.parent / "infra/cloudformation" / nested)["Resources"].values()
    return {resource["Type"] for resource in resources}


def actions_of(resource_type: str) -> Iterator[str]:
    schemas = needed("cfnlint.schema.manager").PROVIDER_SCHEMA_MANAGER  # here, since it takes seconds to load
    schema: Any = schemas.get_resource_schema("us-east-1", resource_type).schema
    for operation in ("create", "read", "update", "delete"):
        yield from schema.get("handlers", {}).get(operation, {}).get("permissions", [])


@pytest.mark.xdist_group("cfn-lint")
@pytest.mark.parametrize("resource_type", sorted(types()))
def test_a_deployer_may_do_what_each_type_needs(resource_type: str) -> None:
    allowed = [action for statement in statements() for action in statement["Action"]]

    missing = {
        action
        for action in actions_of(resource_type)
        if not any(fnmatchcase(action, pattern) for pattern in (*allowed, *NOT_USED))
    }
    assert missing == set()


def test_a_deployer_reads_no_secret_and_no_token() -> None:
    allowed = {action for statement in statements() for action in statement["Action"]}

    for forbidden in ("ssm:GetParametersByPath", "dynamodb:GetItem", "dynamodb:Query", "lambda:InvokeFunction"):
        assert not any(fnmatchcase(forbidden, pattern) for pattern in allowed), forbidden
    (image,) = (statement for statement in statements() if "ssm:GetParameters" in statement["Action"])
    # A parameter of AWS's own has no account in its name.
    assert image["Resource"] == ["arn:PARTITION:ssm:REGION::parameter/aws/service/ami-amazon-linux-latest/*"]


def test_what_can_be_limited_to_the_stack_is() -> None:
    unlimited = {statement["Sid"] for statement in statements() if statement["Resource"] == "*"}

    assert unlimited == {"Network", "WithoutResources"}
    roles = [item for item in statements() if any(action.startswith("iam:") for action in item["Action"])]
    assert all(
        "role/STACK-*" in str(item["Resource"]) or "role/aws-service-role/" in str(item["Resource"]) for item in roles
    )
    (passing,) = (item for item in roles if "iam:PassRole" in item["Action"])
    assert set(passing["Condition"]["StringEquals"]["iam:PassedToService"]) == {
        "lambda.amazonaws.com",
        "scheduler.amazonaws.com",
    }


def test_the_policy_is_as_small_as_iam_wants_it() -> None:
    assert len("".join(POLICY.read_text(encoding="utf-8").split())) <= LARGEST
