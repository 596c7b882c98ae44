"""What the rules choose from: accounts, readers, events, and the faults of WeChat's responses."""

from collections.abc import Callable

from hypothesis import strategies as st

from infra.local.simulated_wechat import Fault
from tests.simulation.accounts import RECORDS
from tests.simulation.watched import SKEWS
from token_keeper.model import ACCESS_TOKEN

FAULTS: dict[str, Callable[[], Fault]] = {
    **{
        f"errcode {code}": lambda code=code: Fault.error(code)  # type: ignore[misc]
        for code in (-1, 40001, 40125, 40164, 45009, 48001, 89503, 89507, 99999)
    },
    "an errmsg that repeats what was sent": lambda: Fault.error(40125, "wrong: {sent}"),
    "bad gateway": Fault.http,
    "bad gateway after the fact": lambda: Fault.http(carried_out=True),
    "redirect": Fault.redirect,
    "null": Fault.malformed,
    "no token": lambda: Fault.malformed(b'{"access_token":null,"expires_in":7200}'),
    "no life": lambda: Fault.malformed(b'{"access_token":"simulated_token_x","expires_in":-1}'),
    "html": lambda: Fault.malformed(b"<html>simulated_token_in_a_page</html>"),
    "truncated": Fault.truncated,
    "oversized": lambda: Fault.oversized(100_000),
    "lost after": Fault.drop_after,
    "lost before": Fault.drop_before,
    "slow": lambda: Fault.slow(3),
    "too slow": lambda: Fault.slow(30),
}

accounts = st.sampled_from(sorted(RECORDS))
readers = st.integers(0, len(SKEWS) - 1)
deliveries = st.sampled_from(["at once", "at once", "twice", "late", "lost"])
wakes = st.one_of(
    st.sampled_from([{"wake": "guard"}, {"wake": "guard"}, {"wake": "tick"}, {"wake": "probe"}, {"next": "account"}]),
    accounts.map(lambda name: {"renew": {"account": name, "credential": ACCESS_TOKEN}}),
    accounts.map(lambda name: {"verify": name}),
    accounts.map(lambda name: {"changed": name}),
    accounts.map(lambda name: {"read": name}),
    accounts.map(lambda name: {"rotate": name}),
)
