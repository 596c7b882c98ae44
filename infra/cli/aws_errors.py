"""What AWS refused, or why it could not be asked, in one sentence for the operator.

An error's own text stays out: it may repeat what was sent.
"""

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import botocore.session
from botocore import exceptions as aws
from botocore.parsers import ResponseParserError

SIGN_IN = "sign in to AWS again, or choose a profile with AWS_PROFILE"
NOT_AWS = "The response did not come from {where}: a proxy, a sign-in page of the network or another program sent it."

MOST_CLOCK_SKEW = 240
"""Seconds. AWS refuses signatures that are 5 minutes old."""


def _for_each(codes: str, sentence: str) -> dict[str, str]:
    return dict.fromkeys(codes.split(), sentence)


_OF_ROBOTS = {
    "ParameterNotFound": "There is no {subject}: `token-keeper notifications list` shows those there are.",
    "ParameterAlreadyExists": "The {subject} exists: to change it, `token-keeper notifications remove` it first.",
}
"""What the same codes mean where the subject is a group robot."""

_BY_CODE = {
    "ParameterNotFound": "There is no account '{subject}': `token-keeper accounts list` shows those there are.",
    "ParameterAlreadyExists": "The account '{subject}' exists: use `accounts set` or `accounts set-secret`, or remove it first.",
    **_for_each(
        "ExpiredToken ExpiredTokenException TokenRefreshRequired",
        f"Your AWS session has expired: {SIGN_IN}.",
    ),
    **_for_each(
        "InvalidClientTokenId UnrecognizedClientException InvalidAccessKeyId MissingAuthenticationToken OptInRequired",
        f"AWS does not know your access key in {{region}}: {SIGN_IN}. A region that has to be enabled first (an opt-in "
        "region) refuses every key until it is enabled; and keys of AWS China work only in the regions there.",
    ),
    **_for_each(
        "SignatureDoesNotMatch InvalidSignatureException IncompleteSignature AuthFailure",
        "The secret access key does not belong to the access key: copy both again. A proxy that changes requests has the "
        "same effect.",
    ),
    **_for_each(
        "RequestExpired RequestTimeTooSkewed RequestInTheFuture",
        "The clock of this machine differs too much from AWS's: set it right, and try again.",
    ),
    **_for_each(
        "AccessDenied AccessDeniedException UnauthorizedOperation AuthorizationError AuthorizationErrorException",
        f"AWS does not let you {{operation}} for '{{subject}}': have it allowed, or {SIGN_IN}.",
    ),
    **_for_each(
        "Throttling ThrottlingException TooManyRequestsException RequestLimitExceeded ProvisionedThroughputExceededException",
        "AWS is busy with too many requests like {operation}: wait a minute, and try again.",
    ),
    **_for_each(
        "ServiceUnavailable ServiceUnavailableException InternalFailure InternalServerError InternalError ServiceException",
        "AWS failed in {operation}: try again in a minute. The AWS Health Dashboard shows its outages.",
    ),
    **_for_each(
        "InvalidKeyId KMSInvalidStateException DisabledException KMSDisabledException NotFoundException",
        "The KMS key of the stack cannot be used for '{subject}': see that it exists, is enabled, and is in {region}.",
    ),
    "ParameterLimitExceeded": "Parameter Store is full: AWS allows 10,000 standard parameters in {region}.",
    "ParameterMaxVersionLimitExceeded": "Parameter Store refuses another version of '{subject}': remove the account and add it again.",
}

_NO_CODE = "Unknown"
"""botocore's code for a refusal that has none, which AWS never sends."""

_SIGNATURE_CODES = ("SignatureDoesNotMatch", "InvalidSignatureException", "AuthFailure")

# The first class that fits decides, so special ones stand before general ones.
_BY_CLASS: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    (
        (aws.ConfigParseError, aws.ConfigNotFound),
        "AWS's configuration file (~/.aws/config or ~/.aws/credentials) cannot be read: correct it.",
    ),
    ((aws.NoRegionError,), "No AWS region is chosen: give --region, or set AWS_REGION."),
    ((aws.InvalidRegionError,), "'{region}' is no AWS region: give another --region, like eu-central-1 or cn-north-1."),
    (
        (aws.ProxyConnectionError, aws.InvalidProxiesConfigError),
        "The proxy cannot be reached: check HTTPS_PROXY and HTTP_PROXY.",
    ),
    (
        (aws.SSLError,),
        "AWS's certificate is not trusted: where a proxy replaces certificates, name its own in AWS_CA_BUNDLE.",
    ),
    (
        (aws.SSOTokenLoadError, aws.UnauthorizedSSOTokenError, aws.TokenRetrievalError, aws.LoginError),
        "Your AWS session has ended: run `aws sso login` or `aws login`, as you usually do.",
    ),
    (
        (aws.NoCredentialsError, aws.PartialCredentialsError, aws.NoAuthTokenError),
        f"AWS credentials are missing: {SIGN_IN}.",
    ),
    (
        (aws.CredentialRetrievalError, aws.MetadataRetrievalError, aws.RefreshWithMFAUnsupportedError),
        f"AWS credentials could not be fetched: {SIGN_IN}.",
    ),
    ((aws.ParamValidationError,), "'{subject}' is nothing that AWS could take here: check how it is written."),
)


def by_code(code: str, *, operation: str, subject: str, region: str | None, date: str | None = None) -> str:
    """The sentence for an error code of AWS. `date`: the response's header, which has AWS's own time."""
    if code in _SIGNATURE_CODES and (ahead := _ahead(date)):
        minutes, direction = round(abs(ahead) / 60), "ahead of" if ahead > 0 else "behind"
        return f"The clock of this machine is {minutes} minutes {direction} AWS's: set it right, and try again."
    meanings = _BY_CODE | (_OF_ROBOTS if subject.startswith("robot ") else {})
    sentence = meanings.get(code, "AWS refused to {operation} for '{subject}': {code}.")
    return sentence.format(operation=operation, subject=subject, region=region, code=code)


def in_words(error: Exception, *, subject: str, region: str | None) -> str:
    """The sentence for what botocore raised."""
    if isinstance(error, aws.ClientError):
        return _of_response(error, subject, region)
    if isinstance(error, aws.ProfileNotFound):
        return f"AWS's configuration has no profile '{error.kwargs['profile']}': correct AWS_PROFILE, or unset it."
    for classes, sentence in _BY_CLASS:
        if isinstance(error, classes):
            return sentence.format(subject=subject, region=region)
    if isinstance(error, aws.ConnectionError | aws.HTTPClientError):
        if not _is_known(region):
            return f"'{region}' is perhaps no AWS region, as nothing responds there: check --region."
        return "AWS cannot be reached: check the network, and AWS_ENDPOINT_URL where it is set."
    if isinstance(error, aws.BotoCoreError):
        return f"AWS credentials or configuration are unusable ({type(error).__name__}): {SIGN_IN}."
    if isinstance(error, ValueError) and str(error).startswith("Invalid endpoint"):
        return "AWS_ENDPOINT_URL is no address: correct it, or unset it."
    return NOT_AWS.format(where="AWS")


def is_foreign(error: Exception) -> bool:
    """Whether something else than AWS responded: no error code but an HTTP status, or a document of another kind."""
    if isinstance(error, aws.ClientError):
        code = _code(error)
        return code == _NO_CODE or (code.isdigit() and int(code) < 500)
    return isinstance(error, ResponseParserError | LookupError) or (
        isinstance(error, ValueError) and not isinstance(error, aws.BotoCoreError)
    )


def _of_response(error: aws.ClientError, subject: str, region: str | None) -> str:
    code, operation = _code(error), error.operation_name
    if code == "ValidationError" and operation == "DescribeStacks":
        return f"There is no stack '{subject}' in {region}: give --stack-name and --region."
    if is_foreign(error):
        return NOT_AWS.format(where="AWS")
    if code.isdigit():
        return f"AWS, or a proxy before it, returned {code}: try again in a minute."
    metadata: Mapping[str, Any] = error.response.get("ResponseMetadata", {})
    date = metadata.get("HTTPHeaders", {}).get("date")
    return by_code(code, operation=operation, subject=subject, region=region, date=date)


def _is_known(region: str | None) -> bool:
    session = botocore.session.get_session()
    partitions = session.get_available_partitions()
    return any(region in session.get_available_regions("ssm", partition) for partition in partitions)


def _code(error: aws.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", _NO_CODE))


def _ahead(date: str | None) -> float:
    """Seconds that this machine's clock is ahead of AWS's; 0 where that is no reason for a refusal."""
    try:
        ahead = time.time() - parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return 0
    return ahead if abs(ahead) > MOST_CLOCK_SKEW else 0
