"""What a warm `token()` costs beside the least that any shared cache costs: a look-up in a dictionary, under a lock.

uv run python -m tests.clients.benchmark
"""

import sys
from statistics import median
from threading import Lock
from time import thread_time
from timeit import Timer

from tests.clients.stub_keeper import APPID, KEY, StubKeeper
from wechat_token_keeper import Keeper

CALLS, ROUNDS = 200_000, 9


class Dictionary:
    """The floor: no time, no promise, no single flight."""

    def __init__(self) -> None:
        self._lock, self._values = Lock(), {"access_token": "token-1"}

    def token(self) -> str:
        with self._lock:
            return self._values["access_token"]


def main() -> None:
    with StubKeeper() as stub:
        keeper = Keeper(stub.url, key=KEY, appid=APPID)
        keeper.token()
        contenders = {"a dictionary under a lock": Dictionary().token, "a warm token()": keeper.token}
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(ROUNDS):  # in turn, and in processor time, so that a busy machine changes little
            for name, call in contenders.items():
                seconds[name].append(Timer(call, timer=thread_time).timeit(CALLS))
    floor, warm = (median(times) / CALLS * 1e6 for times in seconds.values())
    sys.stdout.write(f"a dictionary under a lock  {floor:.2f} µs\n")
    sys.stdout.write(f"a warm token()  {warm:.2f} µs: {warm / floor:.1f} times as much, {warm - floor:.2f} µs more\n")


if __name__ == "__main__":
    main()
