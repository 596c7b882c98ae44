"""An AWS on 127.0.0.1, in this process, with a stack that is made from the real template.yaml.

moto stands in for the services. What moto lacks and the stack lives on is added in front of it: Lambda's Invoke calls
the Python functions it was given, the event of a changed parameter goes where the template's rule says, and a request is carried
out only where its signature shows a key of this stack, and where the policies of the key's role in the template allow it.
For one account and one region; no data outlives `stop`.
"""

import io
import json
import logging
import re
import time
from calendar import timegm
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cache
from hashlib import sha256
from hmac import compare_digest
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import parse_qsl
from uuid import uuid4
from xml.sax.saxutils import escape

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.backends import get_backend
from moto.cloudformation.models import Stack
from moto.core.models import DEFAULT_ACCOUNT_ID as ACCOUNT
from moto.moto_api._internal.models import moto_api_backend
from moto.moto_server.werkzeug_app import create_backend_app
from moto.utilities.utils import get_partition
from werkzeug.wrappers import Request, Response

from infra.local import access_keys
from infra.local.access_keys import OPERATOR, REGION, Key
from infra.local.http_server import Server
from infra.sam_template import Template, nested, translate

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_PASSED_OVER = (
    *("AWS::ApiGatewayV2::", "AWS::Scheduler::", "AWS::Lambda::EventInvokeConfig", "AWS::SQS::QueuePolicy"),
    *("AWS::Lambda::Permission", "AWS::Lambda::Alias", "AWS::IAM::RolePolicy", "AWS::EC2::EIPAssociation"),
    *("AWS::SNS::TopicPolicy", "AWS::SNS::Subscription", "AWS::CloudWatch::Alarm", "AWS::Logs::MetricFilter"),
    *("AWS::Lambda::EventSourceMapping",),
    "AWS::CloudFormation::WaitConditionHandle",
)
"""The types of resources that moto's CloudFormation does not know, and those that refer to them."""

_TEMPLATES = "templates"
"""The bucket that nested templates lie in, as `sam deploy` puts them into one."""

_NAMED = {
    "TokenTable": "TableName",
    **dict.fromkeys(("RefreshFunction", "ApiFunction", "NotifyFunction"), "FunctionName"),
}
"""What gets its name without CloudFormation's random suffix, so that it can be written into a file for `sam local`."""

_SERVICES = {
    "cloudformation": "cloudformation",
    "dynamodb": "dynamodb",
    "lambda": "lambda",
    "monitoring": "cloudwatch",
    "scheduler": "scheduler",
    "sns": "sns",
    "sqs": "sqs",
    "ssm": "ssm",
}
"""What the stack and its operator use: moto's name of each service by the one that requests are signed for. Of moto's Lambda
only what reads: its other calls start containers."""

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<access_key>\w+)/\d{8}/(?P<region>[\w-]+)/(?P<service>[\w-]+)/aws4_request, *"
    r"SignedHeaders=(?P<headers>[\w;-]+), *Signature=(?P<signature>[0-9a-f]{64})"
)

_LONGEST_SKEW = 300
"""Seconds between a request's time and its arrival (IAM User Guide, "Elements of an AWS API request signature")."""

_INVOKE = re.compile(r"/2015-03-31/functions/(?:[^/]*:function:)?([^/:]+(?::[^/:]+)?)/invocations")
"""The name of a function, or `name:alias`."""

_CHANGES = {"ssm:PutParameter", "ssm:DeleteParameter", "ssm:DeleteParameters"}

type Function = Callable[[dict[str, Any]], object]
type _Statement = dict[str, Any]

_logger = logging.getLogger(__name__)


class EmbeddedAws:
    """An AWS with one stack in it. One at a time in a process: what moto keeps belongs to the process."""

    def __init__(
        self,
        stack_name: str = "local",
        port: int = 0,
        api_url: str = "http://127.0.0.1:3000",
        host: str | None = None,
    ) -> None:
        """Take the port (0: a free one); raises CannotListenError where it is taken.

        `api_url` is the stack's output ApiUrl. `host`: as for a Server.
        """
        self._stack_name = stack_name
        self._api_url = api_url
        self._server = Server(self._handle, port, host=host)
        self._events = ThreadPoolExecutor(thread_name_prefix="event")
        self._moto = cache(create_backend_app)
        # moto's conditional writes are not atomic between threads. One request at a time, they are.
        self._one_at_a_time = Lock()
        self.unavailable: set[str] = set()
        """The services, as requests are signed for them, that fail for the moment."""
        self.emit: Callable[[dict[str, Any]], None] = lambda _event: None
        """Is given each event that a function puts on the bus."""

    def start(self, functions: Mapping[str, Function]) -> Self:
        """Make the stack and listen.

        `functions` by logical id: each takes the event and returns what `json` can write; `logical id:alias` names the
        one for what comes through an alias, if it is another. They are looked up when they are invoked, so that they can
        be made after the start, with what `environment` says.
        """
        self._functions = functions
        self._make_stack()
        self._server.start()
        return self

    def send(self, function: str, event: dict[str, Any]) -> None:
        """Invoke the function with that logical id in a thread of its own, as a schedule does."""
        self._events.submit(self._run, function, event)

    def stop(self) -> None:
        """Let the events that are being handled come to their end, and stop listening."""
        self._events.shutdown(cancel_futures=True)
        self._server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def endpoint_url(self) -> str:
        """The endpoint of every service."""
        return self._server.url

    @property
    def outputs(self) -> dict[str, str]:
        """The stack's outputs."""
        return {name: output.value for name, output in self._stack.output_map.items() if output}

    def environment(self, function: str) -> dict[str, str]:
        """The environment of the function with that logical id, as Lambda would set it for this AWS.

        Its access key is the function's role: with it, calls that the template's policies do not allow are refused.
        """
        key = self.keys[function]
        return {
            **self._resources[function].environment_vars,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": key.access_key,
            "AWS_SECRET_ACCESS_KEY": key.secret_key,
        }

    def session(self, role: str) -> boto3.Session:
        """A session with the key of that role: `OPERATOR`, or a function's logical id."""
        return access_keys.session(self.keys[role])

    def _make_stack(self) -> None:
        template = translate(region=REGION)
        declared = template["Resources"]
        moto_api_backend.reset()
        template = for_moto(template, api_url=self._api_url)
        for name, property_name in _NAMED.items():
            declared[name]["Properties"][property_name] = f"{self._stack_name}-{name}"
        cloudformation = get_backend("cloudformation")[ACCOUNT][REGION]
        self._stack = cloudformation.create_stack(self._stack_name, json.dumps(template), parameters={})
        self._resources = cast(Any, self._stack.resource_map)
        for name, resource in template["Resources"].items():
            if resource["Type"] == "AWS::DynamoDB::Table":
                # The one setting of it that moto's CloudFormation passes over.
                ttl = resource["Properties"]["TimeToLiveSpecification"]
                get_backend("dynamodb")[ACCOUNT][REGION].update_time_to_live(self._resources[name].name, ttl)
        for resource in declared.values():
            if resource["Type"] == "AWS::Scheduler::Schedule":
                self._make_schedule(resource["Properties"])
        roles = {
            name: resource["Properties"]["Role"]["Fn::GetAtt"][0]
            for name, resource in declared.items()
            if resource["Type"] == "AWS::Lambda::Function"
        }
        self.keys = {role: Key.of(role) for role in (OPERATOR, *roles)}
        """The access key of each role: the operator's, and those of the functions by logical id."""
        self._logical_ids = {self._resources[name].function_name: name for name in roles}
        for resource in declared.values():
            if resource["Type"] == "AWS::Lambda::Alias":
                name, alias = resource["Properties"]["FunctionName"]["Ref"], resource["Properties"]["Name"]
                self._logical_ids[f"{self._resources[name].function_name}:{alias}"] = f"{name}:{alias}"
        self._readers = {
            self._resources[resource["Properties"]["EventSourceArn"]["Fn::GetAtt"][0]].name: resource["Properties"][
                "FunctionName"
            ]["Ref"]
            for resource in declared.values()
            if resource["Type"] == "AWS::Lambda::EventSourceMapping"
        }
        """The function that reads a queue, by the queue's name."""
        self._statements: dict[str, list[_Statement]] = {
            name: [item for policy in self._resources[role].policies.values() for item in policy["Statement"]]
            for name, role in roles.items()
        }

    def _make_schedule(self, properties: dict[str, Any]) -> None:
        """Have a schedule that one can look at; the local stack sends its events."""
        get_backend("scheduler")[ACCOUNT][REGION].create_schedule(
            name=properties["Name"]["Fn::Sub"].replace("${AWS::StackName}", self._stack_name),
            description=properties["Description"],
            schedule_expression=properties["ScheduleExpression"],
            flexible_time_window=properties["FlexibleTimeWindow"],
            target={"Input": properties["Target"]["Input"]},
            state=properties.get("State", "ENABLED"),
            **dict.fromkeys(("group_name", "kms_key_arn", "start_date", "end_date"), cast(Any, None)),
            schedule_expression_timezone="UTC",
            action_after_completion=None,
        )

    def _handle(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        request = Request(environ)
        environ["wsgi.input"] = io.BytesIO(request.get_data())  # moto reads it once more
        try:
            response = self._respond(request, self._caller(request))
        except _RefusedError as refused:
            response = _error(request, refused.code, str(refused), refused.status)
        return response(environ, start_response)

    def _respond(self, request: Request, caller: "_Caller") -> Response:
        call = _Call.of(request, caller)
        self._check_permission(call)
        if invoke := _INVOKE.fullmatch(request.path):
            is_event = request.headers.get("X-Amz-Invocation-Type") == "Event"
            return self._invoke(invoke[1], request.get_data(), is_event=is_event)
        if call.action == "events:PutEvents":
            return self._put_events(call)
        if caller.service not in _SERVICES or (caller.service == "lambda" and request.method != "GET"):
            raise _RefusedError("AccessDeniedException", f"This stack does not use that of {caller.service}", 403)
        if caller.service in self.unavailable:
            raise _RefusedError("InternalServerError", f"{caller.service} is made to fail here", 500)
        if call.action in _CHANGES:
            return self._change_parameters(request, call)
        return self._pass_on(request, caller.service)

    def _put_events(self, call: "_Call") -> Response:
        # Not moto's, which takes a library that is not installed, and does not know the functions.
        for entry in call.body["Entries"]:
            event = _event(entry["Source"], entry["DetailType"], json.loads(entry["Detail"]), [], entry["Time"])
            self.emit(event)
            self._publish(event)
        taken = [{"EventId": str(uuid4())} for _ in call.body["Entries"]]
        body = {"FailedEntryCount": 0, "Entries": taken}
        return Response(json.dumps(body), content_type="application/x-amz-json-1.1")

    def _pass_on(self, request: Request, service: str) -> Response:
        with self._one_at_a_time:
            # To that service alone: which one moto itself would choose depends on the path, too.
            application = cast("WSGIApplication", self._moto(cast(Any, _SERVICES[service])))
            return Response.from_app(application, request.environ, buffered=True)

    # --- who asks

    def _caller(self, request: Request) -> "_Caller":
        """Who signed the request (AWS Signature Version 4), and for which service. Raises _RefusedError."""
        if "Authorization" not in request.headers:
            raise _RefusedError("MissingAuthenticationToken", "The request is not signed", 403)
        claimed = _AUTHORIZATION.fullmatch(request.headers["Authorization"])
        if claimed is None or claimed["region"] != REGION:
            raise _RefusedError("IncompleteSignature", f"A request is signed for a service in {REGION}", 403)
        found = [(role, key) for role, key in self.keys.items() if key.access_key == claimed["access_key"]]
        if not found:
            raise _RefusedError("UnrecognizedClientException", "The access key is not one of this stack", 403)
        ((role, key),) = found
        if not _is_signed(request, claimed, key):
            raise _RefusedError("InvalidSignatureException", "The signature does not match the request", 403)
        return _Caller(role, claimed["service"])

    # --- IAM

    def _check_permission(self, call: "_Call") -> None:
        """Raise _RefusedError where the caller may not do that; an operator may do everything.

        moto can enforce policies too, but not these: it knows the resources of few services, and refuses whatever a
        statement allows on one that it does not know.
        """
        if call.role == OPERATOR:
            return
        statements = self._statements[call.role]
        for resource in call.resources:
            effects = {statement["Effect"] for statement in statements if _applies(statement, call, resource)}
            if effects != {"Allow"}:
                text = f"{call.role} is not authorized to perform: {call.action} on resource: {resource}"
                raise _RefusedError("AccessDeniedException", text)

    # --- Lambda

    def _invoke(self, function_name: str, payload: bytes, *, is_event: bool) -> Response:
        logical_id = self._logical_ids.get(function_name)
        if logical_id is None:
            raise _RefusedError("ResourceNotFoundException", f"Function not found: {function_name}", 404)
        event = json.loads(payload or b"{}")
        if is_event:
            self.send(logical_id, event)
            return Response(status=202)
        reply, failed = self._run(logical_id, event)
        return Response(reply, headers={"X-Amz-Function-Error": "Unhandled"} if failed else None)

    def _run(self, logical_id: str, event: dict[str, Any]) -> tuple[str, bool]:
        """Invoke a function: its response as JSON, and whether it failed."""
        try:
            function = self._functions.get(logical_id) or self._functions[logical_id.partition(":")[0]]
            return json.dumps(function(event)), False
        except Exception as error:
            _logger.exception("%s failed", logical_id)
            # Lambda responds with the exception's text; who asked learns no more here than it needs to.
            return json.dumps({"errorType": type(error).__name__, "errorMessage": "see the function's log"}), True

    # --- Parameter Store's events

    def _change_parameters(self, request: Request, call: "_Call") -> Response:
        parameters = get_backend("ssm")[ACCOUNT][REGION]
        names = call.body.get("Names") or [call.body.get("Name", "")]
        before = {name: parameters.get_parameter(name) for name in names}
        response = self._pass_on(request, "ssm")
        if response.status_code == 200:
            for name in names:
                after = parameters.get_parameter(name)
                if parameter := after or before[name]:
                    operation = "Delete" if after is None else "Update" if before[name] else "Create"
                    self._publish(_parameter_event(parameter, operation))
        return response

    def _publish(self, event: dict[str, Any]) -> None:
        """Put an event on the default bus: to the functions whose rules match it, each in its own thread.

        What a rule puts into a queue goes on to the queue's function, in a batch of its own.
        """
        for rule in get_backend("events")[ACCOUNT][REGION].event_buses["default"].rules.values():
            if rule.event_pattern.matches_event(event):  # type: ignore[arg-type]
                for target in rule.targets:
                    name = target["Arn"].rpartition(":")[2]
                    if ":sqs:" in target["Arn"]:
                        self.send(
                            self._readers[name], {"Records": [{"messageId": event["id"], "body": json.dumps(event)}]}
                        )
                    else:
                        self.send(self._logical_ids[name], event)


def for_moto(template: Template, *, api_url: str, region: str = REGION) -> Template:
    """What moto's CloudFormation can make of a translated template; its nested templates are put into moto's S3."""
    # moto makes nested stacks, but does not return their outputs.
    Stack.get_cfn_attribute = _output  # type: ignore[attr-defined]
    # These templates are JSON; moto's YAML parser takes a hundred times as long.
    Stack.parse_template = staticmethod(json.loads)  # type: ignore[assignment]
    templates = get_backend("s3")[ACCOUNT][get_partition(region)]
    if _TEMPLATES not in templates.buckets:
        templates.create_bucket(_TEMPLATES, region)
    ready: Template = {**template, "Resources": _known(template["Resources"])}
    for name, resource in ready["Resources"].items():
        if resource["Type"] == "AWS::CloudFormation::Stack":
            inner = nested(template, name, region=region)
            inner["Resources"] = _known(inner["Resources"])
            templates.put_object(_TEMPLATES, name, json.dumps(inner).encode())
            parameters = resource["Properties"].get("Parameters", {})
            passed = {k: v if v != {"Ref": "HttpApi"} else "api" for k, v in parameters.items()}
            url = f"https://{_TEMPLATES}.s3.amazonaws.com/{name}"
            ready["Resources"][name] = {**resource, "Properties": {"TemplateURL": url, "Parameters": passed}}
    ready["Outputs"] = {**template["Outputs"], "ApiUrl": {"Value": api_url}}
    return ready


def _known(resources: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in resources.items() if not item["Type"].startswith(_PASSED_OVER)}


def _output(stack: Stack, attribute: str) -> str:
    output = stack.output_map[attribute.removeprefix("Outputs.")]
    return str(output and output.value)


class _RefusedError(Exception):
    """AWS does not do that: its error code, and the HTTP status."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.status = code, status


@dataclass(frozen=True)
class _Caller:
    """The role whose key signed a request, and the service that it is for."""

    role: str
    service: str


def _is_signed(request: Request, claimed: re.Match[str], key: Key) -> bool:
    """Whether the signature is what the key makes of the request: all of it that means anything, and lately."""
    names, sent = claimed["headers"].split(";"), {name.lower() for name, _ in request.headers}
    if not {"host"} | {name for name in sent if name.startswith("x-amz-")} <= set(names) <= sent:
        return False
    body = request.get_data()
    digest = sha256(body).hexdigest()
    if request.headers.get("X-Amz-Content-SHA256", digest) != digest:
        return False
    moment = request.headers.get("X-Amz-Date", "")
    try:
        sent_at = timegm(time.strptime(moment, "%Y%m%dT%H%M%SZ"))
    except ValueError:
        return False
    if abs(time.time() - sent_at) > _LONGEST_SKEW:
        return False
    signed = AWSRequest(
        request.method,
        f"http://{request.host}{request.environ['REQUEST_URI']}",
        {name: request.headers[name] for name in names},
        body,
    )
    signed.context["timestamp"] = moment
    signer = SigV4Auth(Credentials(key.access_key, key.secret_key), claimed["service"], claimed["region"])
    right = signer.signature(signer.string_to_sign(signed, signer.canonical_request(signed)), signed)
    return compare_digest(right, claimed["signature"])


@dataclass(frozen=True)
class _Call:
    """A request to AWS in IAM's words: who wants to do what to which resources."""

    role: str
    action: str
    resources: list[str]
    body: dict[str, Any]

    @classmethod
    def of(cls, request: Request, caller: _Caller) -> Self:
        if function := _INVOKE.fullmatch(request.path):
            return cls(caller.role, "lambda:InvokeFunction", [_arn("lambda", f"function:{function[1]}")], {})
        operation = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        body = json.loads(request.get_data()) if operation else {}
        if request.mimetype == "application/x-www-form-urlencoded":  # the protocol of SNS
            body = dict(parse_qsl(request.get_data(as_text=True)))
            operation = body.get("Action", "")
        action = f"{caller.service}:{operation}"
        return cls(caller.role, action, _resources_of(caller.service, body), body)


def _resources_of(service: str, body: Mapping[str, Any]) -> list[str]:
    """The ARNs that IAM checks a request against (AWS's Service Authorization Reference)."""
    if service == "dynamodb" and (tables := body.get("RequestItems") or [body.get("TableName")]):
        index = f"/index/{body['IndexName']}" if "IndexName" in body else ""
        return [_arn("dynamodb", f"table/{table}{index}") for table in tables]
    if service == "ssm" and (names := body.get("Names") or [body.get("Name") or body.get("Path")]):
        return [_arn("ssm", f"parameter/{str(name).removeprefix('/')}") for name in names]
    if service == "sns" and isinstance(body.get("TopicArn"), str):
        return [body["TopicArn"]]
    if service == "events" and "Entries" in body:
        return [_arn("events", "event-bus/default")]
    return ["*"]


def _applies(statement: _Statement, call: _Call, resource: str) -> bool:
    return (
        any(fnmatchcase(call.action, pattern) for pattern in _listed(statement["Action"]))
        and any(fnmatchcase(resource, pattern) for pattern in _listed(statement["Resource"]))
        and _holds(statement.get("Condition", {}), statement["Effect"], call)
    )


def _holds(condition: Mapping[str, Mapping[str, Any]], effect: str, call: _Call) -> bool:
    """Whether a statement's condition holds. One that is not known here lets nothing pass: it denies and does not allow."""
    return all(
        _test(operator, key, wanted, effect, call)
        for operator, keys in condition.items()
        for key, wanted in keys.items()
    )


def _test(operator: str, key: str, wanted: Any, effect: str, call: _Call) -> bool:
    match operator, key:
        case "ForAllValues:StringLike", "dynamodb:LeadingKeys":
            keys = _leading_keys(call.body)
            return bool(keys) and all(any(fnmatchcase(item, pattern) for pattern in wanted) for item in keys)
        case "StringEquals", "events:source":
            return all(entry.get("Source") == wanted for entry in call.body.get("Entries", ()))
        case "StringEquals", "ssm:Recursive":
            return json.dumps(call.body.get("Recursive", False)) == str(wanted)
        case _:
            return effect == "Deny"


def _leading_keys(body: Mapping[str, Any]) -> list[str]:
    """The partition keys that a request to DynamoDB is about; none where it names them in another way than ours do."""
    keys = [body[name]["pk"] for name in ("Key", "Item") if name in body]
    keys += [key["pk"] for request in body.get("RequestItems", {}).values() for key in request["Keys"]]
    if named := re.match(r"pk = (:\w+)", body.get("KeyConditionExpression", "")):
        keys.append(body["ExpressionAttributeValues"][named[1]])
    return [key["S"] for key in keys]


def _listed(one_or_more: str | list[str]) -> list[str]:
    return [one_or_more] if isinstance(one_or_more, str) else one_or_more


def _arn(service: str, resource: str) -> str:
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}"


def _parameter_event(parameter: Any, operation: str) -> dict[str, Any]:
    """The event that Parameter Store sends (AWS Systems Manager User Guide, "Parameter Store Change")."""
    detail = {"operation": operation, "name": parameter.name, "type": parameter.parameter_type}
    resources = [_arn("ssm", f"parameter/{parameter.name.removeprefix('/')}")]
    detail |= {"description": parameter.description} if parameter.description else {}
    return _event("aws.ssm", "Parameter Store Change", detail, resources)


def _event(
    source: str, detail_type: str, detail: dict[str, Any], resources: list[str], at: float | None = None
) -> dict[str, Any]:
    """An event as EventBridge delivers it. `at`: epoch seconds, now where it is None."""
    happened = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    return {
        "version": "0",
        "id": str(uuid4()),
        "detail-type": detail_type,
        "source": source,
        "account": ACCOUNT,
        "time": f"{happened:%Y-%m-%dT%H:%M:%SZ}",
        "region": REGION,
        "resources": resources,
        "detail": detail,
    }


def _error(request: Request, code: str, message: str, status: int) -> Response:
    """An error in the protocol of the request: XML where it is a form, else JSON."""
    headers = {"x-amzn-ErrorType": code}
    if request.mimetype == "application/x-www-form-urlencoded":
        error = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
        return Response(f"<ErrorResponse>{error}</ErrorResponse>", status, headers, content_type="text/xml")
    body = {"__type": code, "message": message, "Message": message}
    return Response(json.dumps(body), status, headers, content_type="application/x-amz-json-1.0")
