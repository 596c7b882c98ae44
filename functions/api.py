"""ApiFunction: the readers' AWS client, the reader and the routes, put together."""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from token_keeper.api.aws.clients import Client
from token_keeper.api.reader import Reader
from token_keeper.api.refresh_client import Refresher
from token_keeper.api.routes import Api, Response
from token_keeper.table import Table

type Handler = Callable[[Mapping[str, Any], Any], Response]


def create_handler(
    environment: Mapping[str, str],
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
    client: Callable[[str], Any] | None = None,
) -> Handler:
    """Make the handler for a stack's environment: `TABLE_NAME`, `REFRESH_FUNCTION_NAME`, and AWS's own variables.

    `client` makes the client of a service, as `boto3.client` does; with none it is a `Client`.
    """
    make_client: Callable[[str], Any] = client or partial(Client, environment=environment)
    table = Table(make_client("dynamodb"), environment["TABLE_NAME"])
    refresher = Refresher(make_client("lambda"), environment["REFRESH_FUNCTION_NAME"])

    def now() -> int:
        return int(clock())

    api = Api(table, Reader(table, refresher, now, sleep), now)
    return lambda event, context: api.handle(event)


if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    # At once: Lambda gives the processor most freely before the first event.
    handler = create_handler(os.environ)
    """AWS Lambda's entry."""
