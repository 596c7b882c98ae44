"""Take the pictures of the documents: the local stack's page with a renewal, a repair and a failure, in three forms.

    uv run --group ci python -m tests.reports.screenshots

It takes a minute and a half, and writes them to infra/docs/pictures.
"""

import logging
from pathlib import Path
from typing import Any

from rich.console import Console

from infra.local.local_stack import FASTEST, LocalStack
from tests.support.browser import chromium

PICTURES = Path(__file__).parents[2] / "infra" / "docs" / "pictures"

FORMS: dict[str, dict[str, Any]] = {
    "light": {"width": 1280, "scheme": "light", "language": "en-GB"},
    "dark": {"width": 1280, "scheme": "dark", "language": "zh-CN"},
    "narrow": {"width": 360, "scheme": "light", "language": "en-GB"},
}

HEIGHT = 640


def main() -> None:
    """Let two and a half hours pass in 75 seconds, and take the pictures."""
    logging.disable()
    PICTURES.mkdir(exist_ok=True)
    with LocalStack(speed=FASTEST) as local, chromium() as browser:
        pages = {name: _open(browser, local.page_url, **form) for name, form in FORMS.items()}
        token = pages["light"].locator("article:has-text('access_token')")
        token.locator(".overlap").wait_for()
        local.clock.sleep(900)
        pages["light"].get_by_role("button", name="Another client kills the tokens").click()
        token.locator(".mark.repaired").wait_for()
        local.clock.sleep(900)
        pages["light"].get_by_role("button", name="Refuse this address (40164)").click()
        for name, page in pages.items():
            page.locator(".lane .mark.failed").first.wait_for()
            page.screenshot(path=PICTURES / f"{name}.png")
            Console().print(f"{name}.png: {(PICTURES / f'{name}.png').stat().st_size} bytes")


def _open(browser: Any, url: str, *, width: int, scheme: str, language: str) -> Any:
    context = browser.new_context(
        viewport={"width": width, "height": HEIGHT}, color_scheme=scheme, locale=language, timezone_id="UTC"
    )
    page = context.new_page()
    page.set_default_timeout(180_000)
    page.goto(url)
    return page


if __name__ == "__main__":
    main()
