"""What template.yaml makes: SAM's own translation of it, offline, and the parts that stand-ins for AWS are built from."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import yaml
from samtranslator.parser.parser import Parser  # type: ignore[import-untyped]
from samtranslator.translator.translator import Translator  # type: ignore[import-untyped]
from samtranslator.yaml_helper import intrinsics_multi_constructor  # type: ignore[import-untyped]

TEMPLATE = Path(__file__).parent.parent / "template.yaml"

_ANY_METHOD = "x-amazon-apigateway-any-method"
_SECONDS = {"minute": 60, "hour": 3600}

type Template = dict[str, Any]
"""A CloudFormation template as CloudFormation would take it in JSON."""


@dataclass(frozen=True)
class Route:
    """A route of the HTTP API, as API Gateway's route key names it, and the logical id of the function behind it.

    The method is ANY where the route takes every method.
    """

    method: str
    path: str
    function: str


@dataclass(frozen=True)
class Schedule:
    """A schedule: every `rate` seconds the function of that logical id is invoked with `event`."""

    logical_id: str
    rate: int
    event: dict[str, Any]
    function: str


def translate(parameters: Mapping[str, str] | None = None, *, region: str = "us-east-1") -> Template:
    """Translate template.yaml to CloudFormation for that region, as SAM does on deployment.

    Parameters (the given ones, else their defaults), the region, its partition and its URL suffix are filled in.
    The functions hold a line instead of their code, which SAM wants in S3 and which does not run from here.
    """
    template: Template = json.loads(_translated(frozenset((parameters or {}).items()), region))
    return template


@cache
def _translated(given: frozenset[tuple[str, str]], region: str) -> str:
    """The translated template as JSON, of which each caller makes a copy of its own."""
    parameters = dict(given)
    template = parse(TEMPLATE)
    del template["Globals"]["Function"]["CodeUri"]
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["InlineCode"] = "# see functions/"
    defaults = {name: parameter["Default"] for name, parameter in template["Parameters"].items()}
    session = boto3.Session(region_name=region)
    # No map of managed policies: the template names none of them the way that SAM would look up in IAM.
    translator = Translator({}, Parser(), boto_session=session)
    translated = translator.translate(template, parameters)
    translator.metrics.publish()  # to nowhere; otherwise it warns of them at some later time
    return json.dumps(_fill_in(translated, {**defaults, **parameters, **_of_region(region)}))


class _Loader(yaml.CSafeLoader):
    """libyaml's parser, which takes a tenth of the time of the one in Python that SAM uses; and CloudFormation's tags."""


_Loader.add_multi_constructor("!", intrinsics_multi_constructor)


def parse(template: Path) -> Template:
    """Read a template in YAML; the short forms of CloudFormation's functions become the long ones."""
    parsed: Template = yaml.load(template.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - it is safe
    return parsed


def nested(template: Template, logical_id: str, *, region: str = "us-east-1") -> Template:
    """The template of a stack that is nested in a translated template, filled in like that.

    Parameters that are decided by the outer stack's resources stay references.
    """
    stack = template["Resources"][logical_id]["Properties"]
    inner = parse(TEMPLATE.parent / stack["TemplateURL"])
    passed = {name: value for name, value in stack.get("Parameters", {}).items() if isinstance(value, str)}
    filled: Template = _fill_in(inner, {**passed, **_of_region(region)})
    return filled


@cache
def _of_region(region: str) -> dict[str, str]:
    partition = boto3.Session().get_partition_for_region(region)
    suffix = "amazonaws.com.cn" if partition == "aws-cn" else "amazonaws.com"
    return {"AWS::Region": region, "AWS::Partition": partition, "AWS::URLSuffix": suffix}


def routes(template: Template) -> list[Route]:
    """The routes of a translated template's HTTP API."""
    found = []
    for api in _resources(template, "AWS::ApiGatewayV2::Api").values():
        for path, operations in sorted(api["Body"]["paths"].items()):
            for method, operation in operations.items():
                uri = operation["x-amazon-apigateway-integration"]["uri"]["Fn::Sub"]
                (called,) = re.findall(r"\$\{(\w+)(?:\.Arn)?\}", uri)
                found.append(Route("ANY" if method == _ANY_METHOD else method.upper(), path, called))
    return found


def schedules(template: Template) -> list[Schedule]:
    """The schedules of a translated template."""
    return [
        Schedule(
            logical_id,
            _seconds(properties["ScheduleExpression"]),
            json.loads(properties["Target"]["Input"]),
            properties["Target"]["Arn"]["Fn::GetAtt"][0],
        )
        for logical_id, properties in _resources(template, "AWS::Scheduler::Schedule").items()
    ]


def _fill_in(node: Any, known: Mapping[str, str]) -> Any:
    """Replace references to what is known; those to resources, and all other functions, stay."""

    def fill(text: str) -> str:
        return re.sub(r"\$\{([\w:]+)\}", lambda reference: known.get(reference[1], reference[0]), text)

    match node:
        case {"Ref": name} if name in known:
            return known[name]
        case {"Fn::Sub": str(text)}:
            filled = fill(text)
            return {"Fn::Sub": filled} if "${" in filled else filled
        case {"Fn::Sub": [text, variables]}:
            return {"Fn::Sub": [fill(text), _fill_in(variables, known)]}
        case dict():
            return {name: _fill_in(value, known) for name, value in node.items()}
        case list():
            return [_fill_in(value, known) for value in node]
        case _:
            return node


def _resources(template: Template, kind: str) -> dict[str, dict[str, Any]]:
    return {name: item["Properties"] for name, item in template["Resources"].items() if item["Type"] == kind}


def _seconds(expression: str) -> int:
    number, unit = expression.removeprefix("rate(").removesuffix(")").split()
    return int(number) * _SECONDS[unit.removesuffix("s")]
