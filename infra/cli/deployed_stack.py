"""A deployed stack, in AWS or on this machine: CloudFormation's outputs say where its things are."""

from typing import Any

from infra.cli.api_client import ApiClient
from infra.cli.aws_connection import AwsConnection, Json
from infra.errors import OperatorError
from infra.local.access_keys import LOCAL_STACK


class DeployedStack:
    """A stack and where its things are. Every method raises OperatorError where it cannot be done."""

    def __init__(self, name: str, region: str | None = None, local_port: int | None = None) -> None:
        """Find the stack in AWS; with `local_port`, the one of the `token-keeper local` whose API is on that port.

        `region`: as of AwsConnection.
        """
        self.aws = AwsConnection(region, local_port)
        self.is_local = self.aws.is_local
        self.name = LOCAL_STACK if self.is_local else name
        with self.aws.errors_in_words(self.name):
            found = self.aws.client("cloudformation").describe_stacks(StackName=self.name)["Stacks"][0]
            self.status = str(found["StackStatus"])
        self.outputs = outputs = {item["OutputKey"]: item["OutputValue"] for item in found.get("Outputs", [])}
        self.parameters = parameters = {
            item["ParameterKey"]: item["ParameterValue"] for item in found.get("Parameters", [])
        }
        # A stack of the release before has neither; only `notifications` needs them.
        self.notify_function = outputs.get("NotifyFunctionName", "")
        self.notifications_path = outputs.get("NotificationsPath", "").rstrip("/")
        try:
            self.api = ApiClient(self.aws, outputs["ApiUrl"])
            self.accounts_path = outputs["AccountsPath"].rstrip("/")
            self._refresh_function = outputs["RefreshFunctionName"]
            self.table = outputs["TokenTableName"]
        except KeyError as missing:
            raise OperatorError(
                f"The stack '{self.name}' has no output {missing}: is it a different stack, or still being created?"
            ) from None
        self._kms_key = parameters.get("KmsKeyArn")
        self.has_compatible_api = parameters.get("WeChatCompatibleApi") != "disabled"
        """Whether the stack serves consumers: its parameter `WeChatCompatibleApi`."""

    def partition(self, pk: str) -> list[Json]:
        """The items of a partition of the table."""
        query = {
            "TableName": self.table,
            "KeyConditionExpression": "pk = :pk",
            "ExpressionAttributeValues": {":pk": {"S": pk}},
            "ConsistentRead": True,
        }
        return self.aws.ask_all("dynamodb", "query", "Items", self.table, **query)

    def put_secret(self, subject: str, parameter: str, value: str, *, overwrite: bool = False) -> None:
        """Store `subject` as a SecureString parameter of that name; without `overwrite`, only where there is none."""
        # Named each time: a parameter that is overwritten without a key falls back to the AWS account's default key.
        key: Any = {"KeyId": self._kms_key} if self._kms_key else {}
        arguments = {"Name": parameter, "Value": value, "Type": "SecureString", "Overwrite": overwrite, **key}
        self.aws.ask("ssm", "put_parameter", subject, **arguments)

    def renew(self, account: str, credential: str) -> Json:
        """Have a credential replaced now, and return RefreshFunction's summary."""
        event = {"renew": {"account": account, "credential": credential, "rotate": True}}
        return self.aws.invoke(self._refresh_function, event, "renewed")
