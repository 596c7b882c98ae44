"""The threat model in .github/SECURITY.md: what it says is held by the code, the template and the tests it names."""

import re

from infra.sam_template import TEMPLATE, routes, translate
from token_keeper import budget
from token_keeper.api.reader import REMEMBERED_FOR
from token_keeper.untrusted import LONGEST_BODY

ROOT = TEMPLATE.parent
DOCUMENT = (ROOT / ".github" / "SECURITY.md").read_text(encoding="utf-8")


def test_every_file_it_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", DOCUMENT)
    assert len(named) > 10
    assert [file for file in named if not (ROOT / file).is_file()] == []


def test_its_figures_are_those_of_the_code() -> None:
    (stage,) = (
        resource["Properties"]
        for resource in translate()["Resources"].values()
        if resource["Type"] == "AWS::ApiGatewayV2::Stage"
    )
    limits = sum(limit["ThrottlingRateLimit"] for limit in stage["RouteSettings"].values())
    for sentence in (
        f"{budget.REPORT_BURST} at once, regained one in {budget.REPORT_INTERVAL} seconds",
        f"trusted for {REMEMBERED_FOR} seconds",
        f"{REMEMBERED_FOR} seconds after `consumers revoke`",
        f"more than {LONGEST_BODY} bytes",
        f"{limits} requests a second together",
    ):
        assert sentence in DOCUMENT


def test_no_route_has_cors() -> None:
    template = translate()
    (api,) = (item["Properties"] for item in template["Resources"].values() if item["Type"] == "AWS::ApiGatewayV2::Api")
    assert "CorsConfiguration" not in api
    assert "x-amazon-apigateway-cors" not in api["Body"]
    assert not [route for route in routes(template) if route.method == "OPTIONS"]
    for source in (ROOT / "functions").rglob("*.py"):
        assert "access-control-" not in source.read_text(encoding="utf-8").lower()
