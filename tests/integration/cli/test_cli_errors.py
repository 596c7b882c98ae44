"""What prevents a command: each in one sentence that says what to do, with exit code 2."""

import os
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from infra.cli.api_client import ApiClient
from infra.local import access_keys
from infra.local.access_keys import Key
from tests.support.command_line import SECRET, Service, run

NO_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": None,
    "AWS_SECRET_ACCESS_KEY": None,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_CONFIG_FILE": os.devnull,
}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (NO_CREDENTIALS, "AWS credentials are missing: sign in to AWS again"),
        ({"AWS_SECRET_ACCESS_KEY": None, "AWS_CONFIG_FILE": os.devnull}, "AWS credentials are missing"),
        ({"AWS_PROFILE": "nobodys", "AWS_CONFIG_FILE": os.devnull}, "has no profile 'nobodys': correct AWS_PROFILE"),
        ({"AWS_DEFAULT_REGION": None, "AWS_CONFIG_FILE": os.devnull}, "give --region, or set AWS_REGION"),
        ({"AWS_CONFIG_FILE": __file__}, "configuration file (~/.aws/config or ~/.aws/credentials) cannot be read"),
        ({"AWS_ENDPOINT_URL": "nonsense"}, "AWS_ENDPOINT_URL is no address"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "AWS cannot be reached: check the network"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_REGION": "mars-1"}, "'mars-1' is perhaps no AWS region"),
        ({"HTTPS_PROXY": "http://127.0.0.1:9"}, "The proxy cannot be reached: check HTTPS_PROXY"),
        ({"TOKEN_KEEPER_LOCAL_PORT": "65536"}, "TOKEN_KEEPER_LOCAL_PORT"),
        ({"TOKEN_KEEPER_LOCAL_PORT": "0"}, "TOKEN_KEEPER_LOCAL_PORT"),
        ({"TOKEN_KEEPER_LOCAL_PORT": "http"}, "TOKEN_KEEPER_LOCAL_PORT"),
    ],
)
def test_a_wrong_environment(environment: dict[str, str | None], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    result = run("status")
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("ExpiredToken", "Your AWS session has expired: sign in to AWS again"),
        ("InvalidClientTokenId", "AWS does not know your access key in cn-north-1"),
        ("InvalidClientTokenId", "an opt-in region"),
        ("OptInRequired", "an opt-in region"),
        ("SignatureDoesNotMatch", "The secret access key does not belong to the access key"),
        ("RequestExpired", "The clock of this machine differs too much from AWS's"),
        ("AccessDenied", "AWS does not let you DescribeStacks for 'wechat-token-keeper'"),
        ("Throttling", "wait a minute"),
        ("InternalFailure", "try again in a minute"),
        ("SomethingNew", "AWS refused to DescribeStacks for 'wechat-token-keeper': SomethingNew"),
    ],
)
def test_what_aws_refuses(service: Service, monkeypatch: pytest.MonkeyPatch, code: str, says: str) -> None:
    # Given a CloudFormation that refuses, with a text that may repeat what was sent
    service.status = 400
    service.response = f"<ErrorResponse><Error><Code>{code}</Code><Message>{SECRET}</Message></Error></ErrorResponse>"
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDFORMATION", service.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    # When the status is asked for
    result = run("status")
    # Then the operator reads what to do, and not that text
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert SECRET not in result.output


@pytest.mark.parametrize(("minutes", "says"), [(-17, "17 minutes ahead of AWS's"), (42, "42 minutes behind AWS's")])
def test_a_wrong_clock_is_named_as_the_cause(
    service: Service, monkeypatch: pytest.MonkeyPatch, minutes: int, says: str
) -> None:
    # Given an AWS whose clock shows another time, and which refuses signatures of this one
    service.status = 403
    service.headers = {"Date": format_datetime(datetime.now(UTC) + timedelta(minutes=minutes), usegmt=True)}
    error = "<Error><Code>SignatureDoesNotMatch</Code><Message>Signature expired</Message></Error>"
    service.response = f"<ErrorResponse>{error}</ErrorResponse>"
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDFORMATION", service.url)
    # When the status is asked for
    result = run("status")
    # Then the clock is named, and not the key
    assert result.exit_code == 2
    assert f"The clock of this machine is {says}: set it right" in result.stderr


PAGE = "<html><body>Sign in to the guest network</body></html>"


@pytest.mark.parametrize(
    ("status_code", "response"), [(200, PAGE), (404, PAGE), (407, PAGE), (200, ""), (200, "{}"), (200, '{"Stacks": 1}')]
)
@pytest.mark.parametrize("is_local", [False, True])
def test_another_program_that_responds_is_not_taken_for_aws(
    home: None, service: Service, monkeypatch: pytest.MonkeyPatch, status_code: int, response: str, is_local: bool
) -> None:
    # Given a proxy in place of CloudFormation, or another program on the port of the embedded AWS
    service.status, service.response = status_code, response
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDFORMATION", service.url)
    port = int(service.url.rpartition(":")[2]) - 1
    monkeypatch.setenv("TOKEN_KEEPER_LOCAL_PORT", str(port))
    access_keys.write(port, service.url, {"operator": Key.of("operator")}, "api-key")
    # When the status is asked for
    result = run("status", *(["--local"] if is_local else []))
    # Then that is said, and nothing of the page
    assert (result.exit_code, result.stdout) == (2, "")
    assert ("is no local stack of yours" if is_local else "did not come from AWS") in result.stderr
    assert "guest" not in result.stderr


@pytest.mark.parametrize("profile", ["AWS_PROFILE", "AWS_CONFIG_FILE"])
def test_no_configuration_of_aws_matters_to_the_local_stack(profile: str) -> None:
    # Given a profile that is not there, or a file that cannot be read
    result = run("--local", "status", **{profile: __file__, "TOKEN_KEEPER_LOCAL_PORT": "8"})
    # Then it is not looked at
    assert result.exit_code == 2
    assert "is `token-keeper local` running?" in result.stderr


def test_an_unexpected_error_asks_for_a_report_without_values(stack: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a defect whose text holds a secret
    def broken(*_: object) -> None:
        raise KeyError(SECRET)

    monkeypatch.setattr(ApiClient, "health", broken)
    # When a command meets it
    result = run("status")
    # Then it exits with 2 and says where, and nothing else
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.search(r"unexpected KeyError at \w+\.py:\d+ in token-keeper \d.*please report it", result.stderr)
    assert SECRET not in result.stderr
    assert "Traceback" not in result.stderr
