"""ApiFunction: the readers' AWS client, the reader and the routes, put together."""

import os
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from token_keeper.api.aws.clients import Client
from token_keeper.api.reader import Reader
from token_keeper.api.refresh_client import Refresher
from token_keeper.api.routes import Api, Response
from token_keeper.clock import whole_seconds
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
    now = whole_seconds(clock)
    api = Api(table, Reader(table, refresher, now, sleep), now)
    return lambda event, context: api.handle(event)


_handler = cache(lambda: create_handler(os.environ))

if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    # Lambda gives the processor most freely before the first event.
    _handler()


def handler(event: dict[str, Any], context: Any) -> Response:
    """AWS Lambda's entry."""
    return _handler()(event, context)
