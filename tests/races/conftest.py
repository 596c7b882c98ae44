"""DynamoDB Local for the whole layer; where it cannot run, the layer is left out, but not in CI."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config
from moto import mock_aws

from tests.races.race import DEADLINE, RUNNERS, RaceWorld
from tests.support.world import REGION, create_table
from token_keeper.table import Table


@pytest.fixture(scope="session")
def client(dynamodb_url: str) -> Callable[..., Any]:
    """Makes AWS clients: DynamoDB Local's for DynamoDB, and for the rest boto3's, to be used inside moto's `mock_aws`.

    They are patient: on a busy machine DynamoDB Local may take longer than the functions wait for AWS.
    """
    session = boto3.Session("test", "test", region_name=REGION)
    patient = Config(max_pool_connections=RUNNERS, connect_timeout=DEADLINE, read_timeout=DEADLINE)

    def make(service: str, **_: Any) -> Any:
        endpoint = {"endpoint_url": dynamodb_url} if service == "dynamodb" else {}
        return session.client(service, config=patient, **endpoint)  # type: ignore[call-overload]

    return make


@pytest.fixture(scope="session")
def dynamodb(client: Callable[..., Any]) -> Any:
    """One client for all: botocore's clients may be shared between threads."""
    return client("dynamodb")


@pytest.fixture
def table_name() -> str:
    """The name of a table that no other test uses."""
    return f"tokens-{uuid4()}"


@pytest.fixture
def table(dynamodb: Any, table_name: str) -> Table:
    """An empty table."""
    create_table(dynamodb, table_name)
    return Table(dynamodb, table_name)


@pytest.fixture
def world(client: Callable[..., Any], table_name: str) -> Iterator[RaceWorld]:
    """A whole system over DynamoDB Local."""
    with mock_aws():
        client_of = cache(client)  # one for each service: all instances may share it
        yield RaceWorld(lambda service, **_: client_of(service), table_name)
