"""A process that stands in for WeChat, DynamoDB and Parameter Store, and responds as slowly as they do.

WeChat speaks TLS, with a certificate for 127.0.0.1; the AWS services speak HTTP, over connections that boto3 keeps. The
waiting stands for the network and for their work. What a handshake, a request and its parsing cost the caller's
processor is real.
"""

import argparse
import asyncio
import json
import os
import ssl
import sys
import threading
import time
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from botocore import xform_name
from botocore.exceptions import ClientError

from infra import sam_template
from infra.local.simulated_wechat import SimulatedWeChat
from tests.simulation.expressions import Item
from tests.simulation.memory_aws import MemoryAws

ACCOUNTS_PATH = "/wechat-token-keeper/accounts"

DYNAMODB_DELAY, PARAMETER_STORE_DELAY = 0.005, 0.02
"""Seconds."""

PARAMETER_STORE_LIMIT = 40
"""Calls a second that Parameter Store serves by default, all readings together."""

PAGE_OF_PARAMETERS = 10
"""The most that GetParametersByPath returns."""

CIPHERTEXT = "A" * 300
"""What GetParametersByPath returns where it does not decrypt."""

DUE_BEFORE = 540
"""Seconds before its end at which a `token` is due."""

type Handler = Callable[[str, str, Mapping[str, str], bytes], Awaitable[tuple[int, bytes]]]


class Aws(MemoryAws):
    """The table and the parameters. Queries are served from indexes: ten thousand items are not searched one by one.

    `lost` counts the tokens that had expired when their successors were written. `renewed` holds the accounts whose tokens
    have been replaced since all were made due; `written` is called when a token is.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.after_write = self._index
        self.written: Callable[[], object] = lambda: None
        self.clock, self.lost, self.renewed = clock, 0, set[str]()
        self._partitions: dict[str, dict[str, Item]] = {}
        self._due: list[tuple[int, str, str]] = []
        self.create(sam_template.translate()["Resources"]["TokenTable"]["Properties"])

    def searched(self, index: str | None, consistent: bool, values: Mapping[str, Any]) -> Iterable[Item]:
        """The items of a partition, or of the index `due` up to the time that is asked for, or else of the whole index."""
        if index is None:
            return next((self._partitions[pk].values() for pk in values.values() if pk in self._partitions), ())
        if index == "due":
            until = next((value for value in values.values() if isinstance(value, int)), sys.maxsize)
            return [self.items[pk, sk] for _, pk, sk in self._due[: bisect_right(self._due, (until, "~", ""))]]
        return self.items.values()

    def _index(self, _what: str, before: Item | None, after: Item | None) -> None:
        if before is not None:
            pk, sk = before["pk"]["S"], before["sk"]["S"]
            del self._partitions[pk][sk]
            if "due" in before:
                del self._due[bisect_left(self._due, (_number(before, "due_at"), pk, sk))]
        if after is not None:
            pk, sk = after["pk"]["S"], after["sk"]["S"]
            self._partitions.setdefault(pk, {})[sk] = after
            if "due" in after:
                insort(self._due, (_number(after, "due_at"), pk, sk))
            if "value" in after and (before or {}).get("value") != after["value"]:
                self.written()
                self.renewed.add(pk)
                self.lost += before is not None and "value" in before and _number(before, "expires_at") <= self.clock()

    def tokens(self) -> list[Item]:
        """Every item with a token."""
        return [item for item in self.items.values() if "value" in item and item["sk"]["S"] == "access_token"]

    def make_all_due(self) -> int:
        """Make every token due at once, as late as the first of them that ends allows; returns that time."""
        tokens = self.tokens()
        due_at = min(_number(item, "expires_at") for item in tokens) - DUE_BEFORE
        for before in tokens:
            after = before | {"due_at": {"N": str(due_at)}}
            self.items[before["pk"]["S"], before["sk"]["S"]] = after
            self._index("make_all_due", before, after)
        self.renewed.clear()
        return due_at


class StandIns:
    """Everything outside of the function, for so many accounts. `wechat_delay`: seconds until WeChat responds."""

    def __init__(self, accounts: int, wechat_delay: float) -> None:
        self.calls: Counter[str] = Counter()
        self.checked: set[str] = set()
        self.wechat_delay = wechat_delay
        self._ahead = 0.0
        self._aws = Aws(self._clock)
        self._aws.written = self._progress
        self._progressed_at = 0.0
        self._clients = {"DynamoDB": self._aws.client("dynamodb"), "AmazonSSM": self._aws.client("ssm")}
        self._wechat = SimulatedWeChat(self._clock)
        for number in range(accounts):
            record = {"appid": f"wx{number:016}", "secret": f"{number:032}"}
            self._wechat.add_app(record["appid"], record["secret"])
            self._clients["AmazonSSM"].put_parameter(f"{ACCOUNTS_PATH}/a{number:05}", json.dumps(record))
        self._names = sorted(self._aws.parameters)
        self._allowance, self._allowed_at = float(PARAMETER_STORE_LIMIT), time.monotonic()

    def _clock(self) -> float:
        return time.time() + self._ahead

    def _progress(self) -> None:
        self._progressed_at = self._clock()

    async def wechat(self, method: str, target: str, _headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        url = urlsplit(target)
        query = dict(parse_qsl(url.query))
        self.calls[f"WeChat {url.path.rpartition('/')[2]}"] += 1
        if url.path.endswith("get_api_domain_ip"):
            self.checked.add(query["access_token"])
            self._progress()
        reply = self._wechat.handle(method, url.path, query, body)
        await asyncio.sleep(self.wechat_delay)
        return reply.status, reply.body

    async def aws(self, _method: str, _target: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        began = time.monotonic()
        service, operation = headers["x-amz-target"].split("_2")[0], headers["x-amz-target"].rpartition(".")[2]
        service = service.partition(".")[0]
        self.calls[f"{service.removeprefix('Amazon')} {operation}"] += 1
        asked = json.loads(body)
        try:
            if service == "AmazonSSM" and not self._allows():
                self.calls["SSM throttled"] += 1
                raise ClientError({"Error": {"Code": "ThrottlingException", "Message": "Rate exceeded"}}, operation)
            if operation == "GetParametersByPath":
                reply = self._page(asked)
            elif operation == "PutEvents":
                reply = {"FailedEntryCount": 0, "Entries": [{"EventId": "0"} for _ in asked["Entries"]]}
            else:
                reply = getattr(self._clients[service], xform_name(operation))(**asked) or {}
            status = 200
        except ClientError as error:
            response: Any = error.response
            failed = {"__type": response["Error"]["Code"], "message": response["Error"]["Message"]}
            status, reply = 400, failed | ({"Item": response["Item"]} if "Item" in response else {})
        delay = DYNAMODB_DELAY if service == "DynamoDB" else PARAMETER_STORE_DELAY
        await asyncio.sleep(max(0.0, began + delay - time.monotonic()))
        return status, json.dumps(reply, default=lambda moment: moment.timestamp()).encode()

    def _allows(self) -> bool:
        now = time.monotonic()
        earned = (now - self._allowed_at) * PARAMETER_STORE_LIMIT
        self._allowance, self._allowed_at = min(self._allowance + earned, PARAMETER_STORE_LIMIT), now
        allowed = self._allowance >= 1
        self._allowance -= allowed
        return allowed

    def _page(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        start = int(asked.get("NextToken", 0))
        end = start + PAGE_OF_PARAMETERS
        found = [self._aws.parameters[name] | {"Value": CIPHERTEXT} for name in self._names[start:end]]
        return {"Parameters": found} | ({"NextToken": str(end)} if end < len(self._names) else {})

    # --- what the measuring process asks for

    def jump(self, seconds: float) -> None:
        """Let so many seconds have passed."""
        self._ahead += seconds

    def slow_down(self, wechat_delay: float) -> None:
        """Have WeChat respond after so many seconds from now on."""
        self.wechat_delay = wechat_delay

    def make_all_due(self) -> int:
        """As `Aws.make_all_due`."""
        return self._aws.make_all_due()

    def state(self) -> dict[str, Any]:
        """How it stands: calls and checked tokens since this was last asked, usable, renewed and lost tokens so far.

        `progressed_at`: when a token was last written or checked.
        """
        now = self._clock()
        usable = [item for item in self._aws.tokens() if _number(item, "expires_at") > now]
        calls, self.calls = self.calls, Counter()
        checked, self.checked = len(self.checked), set()
        return {
            "calls": calls,
            "checked": checked,
            "usable": sum(self._wechat.accepts(item["value"]["S"]) for item in usable),
            "lost": self._aws.lost,
            "renewed": len(self._aws.renewed),
            "progressed_at": self._progressed_at,
        }


def _number(item: Item, name: str) -> int:
    return int(item[name]["N"])


async def _serve(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
        while True:
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            method, target, _ = first.split()
            status, reply = await handler(method, target, headers, body)
            head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(reply)}\r\n\r\n"
            writer.write(head.encode() + reply)
            await writer.drain()
    writer.close()


async def _main(accounts: int, wechat_delay: float, certificate: Path) -> None:
    stand_ins, loop = StandIns(accounts, wechat_delay), asyncio.get_running_loop()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    ports = []
    for handler, context in ((stand_ins.wechat, tls), (stand_ins.aws, None)):
        serve = partial(_serve, handler)
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context, backlog=1000)
        ports.append(server.sockets[0].getsockname()[1])
    _say({"wechat_url": f"https://127.0.0.1:{ports[0]}", "aws_url": f"http://127.0.0.1:{ports[1]}"})

    def defect(_: object, context: Mapping[str, Any]) -> None:
        loop.default_exception_handler(dict(context))
        os._exit(1)

    loop.set_exception_handler(defect)

    async def obey(command: Mapping[str, Any]) -> None:
        _say(getattr(stand_ins, command["do"])(*command["with"]))

    def listen() -> None:
        for line in sys.stdin:
            asyncio.run_coroutine_threadsafe(obey(json.loads(line)), loop).result()
        loop.call_soon_threadsafe(over.set)

    over = asyncio.Event()
    threading.Thread(target=listen, daemon=True).start()
    await over.wait()


def _say(something: Any) -> None:
    print(json.dumps(something), flush=True)  # noqa: T201


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("accounts", type=int)
    parser.add_argument("wechat_delay", type=float)
    parser.add_argument("certificate", type=Path)
    asyncio.run(_main(**vars(parser.parse_args())))
