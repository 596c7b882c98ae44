"""The page of the local stack in a real browser: what a newcomer sees, presses and reads."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from infra.local.local_stack import DEMO, DEMO_RECORD, LocalStack
from tests.support.browser import chromium, pass_time, violations
from tests.support.local_stack import first_tick

RENEWAL = 111 * 60
"""Seconds from a token's fetch until it is due."""

HALF_A_MINUTE = 40
"""Seconds, and some: a token that is younger is not renewed on demand."""

TOKEN = "article:has-text('access_token')"

pytestmark = [pytest.mark.xdist_group("local"), pytest.mark.long]  # `test_console` opens the page, too


@dataclass
class Visit:
    """A page that is open, and what its browser has asked for and complained about since."""

    page: Any
    requested: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def see(self, selector: str) -> Any:
        """Wait until the page shows that; what is looked for comes when the stack has come so far."""
        found = self.page.locator(selector).first
        found.wait_for()
        return found

    def wait_until(self, condition: str, value: float = 0) -> None:
        """Wait until that JavaScript function of `value` returns true. Playwright's own way makes the page `eval`, which its
        policy forbids."""
        while not self.page.evaluate(condition, value):
            self.page.wait_for_timeout(50)

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).first.text_content())


type Open = Callable[..., Visit]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Opens a page; at the end, none of them has asked elsewhere or written an error into its console."""
    visits, contexts = [], []

    def open_page(url: str, *, width: int = 1280, locale: str = "en-US", scheme: str = "light") -> Visit:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, locale=locale, color_scheme=scheme, timezone_id="UTC"
        )
        context.set_default_timeout(60_000)
        contexts.append(context)
        opened = Visit(context.new_page())
        visits.append((opened, urlsplit(url).netloc))
        opened.page.on("request", lambda request: opened.requested.append(request.url))
        opened.page.on("console", lambda said: opened.complaints.append(said.text) if said.type == "error" else None)
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.goto(url)
        return opened

    yield open_page
    for opened, own in visits:
        assert opened.requested
        assert {urlsplit(url).netloc for url in opened.requested if not url.startswith("data:")} == {own}
        assert opened.complaints == []
    for context in contexts:
        context.close()


@pytest.fixture
def local() -> Iterator[LocalStack]:
    """At the speed of the wall clock, so that a slow machine misses no deadline; the tests move its time, and wake it."""
    with first_tick() as has_ticked, LocalStack() as local:
        assert local.tried.wait(60)
        assert has_ticked.wait(60)
        yield local


def wake(local: LocalStack, schedule: str) -> None:
    """Have a schedule fire now, and wait for its end."""
    functions = local.aws_session().client("lambda", endpoint_url=local.aws_url)
    response = functions.invoke(FunctionName="local-RefreshFunction", Payload=json.dumps({"wake": schedule}))
    assert "FunctionError" not in response


def boxes(visit: Visit, selector: str) -> list[dict[str, float]]:
    """Where all of these are at the same moment, in pixels: the page moves."""
    found: list[dict[str, float]] = visit.page.eval_on_selector_all(
        selector, "all => all.map((one) => one.getBoundingClientRect().toJSON())"
    )
    return found


# --- lanes


def test_the_first_token_appears_without_a_reload(visit: Open) -> None:
    # Given a page of a stack that keeps nothing yet
    with LocalStack(accounts={}) as local:
        visited = visit(local.page_url)
        visited.see("#sum:has-text('No account is kept yet')")
        # When an account is added
        local.wechat.add_app(DEMO_RECORD["appid"], DEMO_RECORD["secret"])
        ssm = local.aws_session().client("ssm", endpoint_url=local.aws_url)
        name = f"/wechat-token-keeper/accounts/{DEMO}"
        ssm.put_parameter(Name=name, Value=json.dumps(DEMO_RECORD), Type="SecureString")
        # Then its token's bar appears, with the promise in it, and its state in words
        visited.see(f"{TOKEN} .bar")
        visited.see(f"{TOKEN} .state:has-text('fresh')")
        visited.see("#sum:has-text('All is well')")
        assert re.search(r"WeChat's calls today: \d+ of 2000", visited.text(f"{TOKEN} .calls"))
        visited.wait_until("() => document.querySelector('.bar i').getBoundingClientRect().width > 10")
        ((whole,), (promised,)) = (boxes(visited, f"{TOKEN} {part}") for part in (".bar", ".bar i"))
        assert promised["width"] < whole["width"]


def test_a_renewal_shows_two_bars_that_overlap(local: LocalStack, visit: Open) -> None:
    # Given the first token
    visited = visit(local.page_url)
    visited.see(f"{TOKEN} .mark.renewed")
    # When the time comes to renew it
    pass_time(local, RENEWAL)
    wake(local, "guard")
    visited.see(f"{TOKEN} .overlap")
    # Then the bars lie in two rows, and the second begins before the first ends
    first, second = boxes(visited, f"{TOKEN} .bar")
    assert first["x"] < second["x"] < first["right"] < second["right"]
    assert first["bottom"] < second["y"]
    # And the axis moves with the stack's clock
    pass_time(local, 600)
    visited.wait_until("left => document.querySelector('.bar').getBoundingClientRect().x < left - 20", first["x"])


@pytest.mark.timeout(300)
def test_the_schedules_renew_and_the_page_follows(visit: Open) -> None:
    # Given a stack whose clock runs 60 times as fast, and that is left alone
    with LocalStack(speed=60) as local:
        visited = visit(local.page_url)
        visited.page.set_default_timeout(240_000)
        # Then the main schedule's renewal shows two bars that overlap
        visited.see(f"{TOKEN} .overlap")
        first, second = boxes(visited, f"{TOKEN} .bar")[-2:]
        assert first["x"] < second["x"] < first["right"] < second["right"]


# --- buttons

BUTTONS = [
    ("Refuse this address (40164)", "failing", "40164", "Add 127.0.0.1 to the IP whitelist"),
    ("Be busy (-1)", "failing", "-1", "retried automatically"),
    ("Lose its responses", "failing", "transient", "retried automatically"),
]


@pytest.mark.parametrize(("button", "state", "cause", "remedy"), BUTTONS, ids=[button[0] for button in BUTTONS])
def test_a_fault_of_wechat_shows_its_state_and_remedy(
    local: LocalStack, visit: Open, button: str, state: str, cause: str, remedy: str
) -> None:
    visited = visit(local.page_url)
    visited.see(f"{TOKEN} .state:has-text('fresh')")
    pass_time(local, HALF_A_MINUTE)
    # When WeChat is made to fail
    visited.page.get_by_role("button", name=button).click()
    # Then the lane says so, why, and what to do
    visited.see(f"{TOKEN} .state.{state}")
    visited.see(f"{TOKEN} .mark.failed")
    said = visited.text(f"{TOKEN} .remedy")
    assert cause in said
    assert remedy in said
    assert visited.page.get_by_role("button", name=button).get_attribute("aria-pressed") == "true"
    # And when it works again, the next attempt repairs the token
    visited.page.get_by_role("button", name="All works again").click()
    visited.see("#hint:has-text('A token is renewed at once')")
    pass_time(local, 300)
    wake(local, "guard")
    visited.see(f"{TOKEN} .state.fresh")
    visited.see(f"{TOKEN} .mark.repaired")


def test_a_killed_token_is_found_and_replaced(local: LocalStack, visit: Open) -> None:
    visited = visit(local.page_url)
    visited.see(f"{TOKEN} .state:has-text('fresh')")
    pass_time(local, 120)  # a younger token is never declared dead
    # When another client invalidates it
    visited.page.get_by_role("button", name="Another client kills the tokens").click()
    visited.see(f"{TOKEN} .mark.killed")
    wake(local, "probe")
    # Then the probe finds it dead, the keeper replaces it, and the page says what an operator should do
    visited.see(f"{TOKEN} .mark.repaired")
    visited.see(f"{TOKEN} .bar.killed")
    visited.see(f"{TOKEN} .remedy:has-text('Another client fetches tokens with this AppSecret')")
    visited.see(f"{TOKEN} .state.fresh")


def test_a_dynamodb_that_is_down_is_said_in_words(local: LocalStack, visit: Open) -> None:
    visited = visit(local.page_url)
    visited.see(f"{TOKEN} .state:has-text('fresh')")
    # When
    visited.page.get_by_role("button", name="DynamoDB down").click()
    # Then what was known stays, under what is wrong
    visited.see("#trouble:has-text('DynamoDB does not respond')")
    visited.see(f"{TOKEN} .bar")
    # And it goes when the button is released
    visited.page.get_by_role("button", name="DynamoDB down").click()
    visited.page.locator("#trouble").wait_for(state="hidden")


# --- for everyone


def test_axe_finds_nothing_and_nothing_sticks_out(local: LocalStack, visit: Open) -> None:
    # Given a page with all that it can show
    visited = visit(local.page_url)
    visited.see(f"{TOKEN} .mark.renewed")
    pass_time(local, RENEWAL)
    wake(local, "guard")
    visited.see(f"{TOKEN} .overlap")
    pass_time(local, 120)
    visited.page.get_by_role("button", name="Another client kills the tokens").click()
    visited.see(f"{TOKEN} .mark.killed")
    wake(local, "probe")
    visited.see(f"{TOKEN} .bar >> nth=2")
    pass_time(local, HALF_A_MINUTE)
    visited.page.get_by_role("button", name="Refuse this address").click()
    visited.see(f"{TOKEN} .state.failing")
    for width, scheme, language in ((360, "light", "中文"), (1600, "dark", "English")):
        # When it is narrow or wide, light or dark, English or Chinese
        visited.page.set_viewport_size({"width": width, "height": 900})
        visited.page.emulate_media(color_scheme=scheme)
        visited.see(f"#language:has-text('{language}')")
        # Then
        assert violations(visited.page) == []
        assert visited.page.evaluate("document.documentElement.scrollWidth") <= width
        visited.page.locator("#language").click()
    # And the remedy was in Chinese, too
    visited.page.locator("#language").click()
    visited.see(f"{TOKEN} .remedy:has-text('把 127.0.0.1 加入 IP 白名单')")


def test_the_browser_chooses_the_language(local: LocalStack, visit: Open) -> None:
    visited = visit(local.page_url, locale="zh-CN")
    visited.see(f"{TOKEN} .state:has-text('有效')")
    assert visited.page.evaluate("document.documentElement.lang") == "zh-CN"
    # When another is chosen, it stays
    visited.page.get_by_role("button", name="English").click()
    visited.see(f"{TOKEN} .state:has-text('fresh')")
    visited.page.reload()
    visited.see(f"{TOKEN} .state:has-text('fresh')")


def test_the_keyboard_reaches_what_the_pointer_does(local: LocalStack, visit: Open) -> None:
    visited = visit(local.page_url)
    visited.see(f"{TOKEN} .mark.renewed")
    # When the track of the token is reached by Tab
    visited.page.locator("#buttons button").last.focus()
    for _ in range(10):
        visited.page.keyboard.press("Tab")
        if visited.page.evaluate("document.activeElement.closest('.lane:not(.top)') !== null"):
            break
    # Then what has the focus is explained, the arrows go on, and Escape closes the explanation
    visited.page.keyboard.press("Home")
    seen = set()
    for _ in range(2):
        seen.add(visited.see("#tip").text_content())
        visited.page.keyboard.press("ArrowRight")
    assert len(seen) == 2
    assert any("promised until" in text for text in seen)
    visited.page.keyboard.press("Escape")
    assert visited.page.locator("#tip").is_hidden()
    # And the pointer has it explained, too
    visited.page.locator(f"{TOKEN} .bar").hover()
    assert "promised until" in str(visited.see("#tip").text_content())


# --- what it gets


def test_a_key_comes_in_the_fragment_and_leaves_the_address(visit: Open) -> None:
    # Given a stack that is open to more than this machine
    with LocalStack(host="127.0.0.1") as local:
        assert local.tried.wait(60)
        pass_time(local, HALF_A_MINUTE)
        # When the printed link is opened
        visited = visit(local.page_url)
        assert local.page_url.endswith(f"#key={local.api_key}")
        # Then the page works, and no address holds the key
        visited.see(f"{TOKEN} .state:has-text('fresh')")
        assert local.api_key not in visited.page.url
        assert not [url for url in visited.requested if local.api_key in url.partition("#")[0]]
        # And its buttons do, too
        visited.page.get_by_role("button", name="Be busy").click()
        visited.see(f"{TOKEN} .state.failing")
        # And without the key it says where that is
        without = visit(local.api_url)
        without.see("#trouble:has-text('open the link that the terminal shows')")
        without.complaints.clear()  # the browser notes each refusal in its console
