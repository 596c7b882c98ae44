"""Errors of the keeper: one base, and what a failed renewal calls for. No message ever carries a value.

KeeperError
├── InvalidRecordError            an account's parameter holds no usable record
│   └── AppIdTakenError           another account keeps the same appid
├── RecordChangedError            a change of an account's record is being applied
│   └── RecordSupersededError      a newer change of it was begun meanwhile
├── QuotaError                    WeChat's limits leave no room for this call now
├── LeaseOverError                the lease ended before WeChat could be asked
├── StoreUnavailableError         DynamoDB
├── ParametersUnavailableError    Parameter Store
├── RefresherUnavailableError     RefreshFunction
├── InvalidRequestError           the API: the request cannot be understood
├── UnknownAccountError           the API: there is no such account
├── UnknownCredentialError        the API: the account has no such credential
├── TooManyReportsError           the API: what reports may spend is used up
├── NoValidValueError             the API: there is no usable value right now
└── WeChatApiError                the API in WeChat's format: one of WeChat's errcodes
(WeChat's own are defined beside the code that raises them.)
"""

from token_keeper.model import Failure, FailureClass

MAX_RETRY_AFTER = 60
"""Seconds: an operator may solve the problem at any time, so no client is sent away for longer."""


class KeeperError(Exception):
    """Base of every error this project raises.

    `code` and `status`: what a problem document of the API calls it, and its HTTP status; `retry_after`: the seconds of its
    `Retry-After`, where it has one. `failure_class`, `errcode` and `remedy`: as health shows it.
    """

    code = "unavailable"
    status = 503
    retry_after: int | None = None
    failure_class = FailureClass.TRANSIENT
    errcode: int | None = None
    remedy = "No action needed: it is retried automatically."

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errmsg = message

    def failure(self, at: int) -> Failure:
        """What health shows of the error; `at`: epoch seconds."""
        return Failure(self.failure_class, self.errcode, self.errmsg, self.remedy, at)


class InvalidRecordError(KeeperError):
    """An account's parameter does not hold a usable record. The text says what is wrong, never the value."""

    failure_class = FailureClass.CONFIGURATION
    remedy = "Correct the account's parameter (`token-keeper accounts set` or `set-secret`); it is tried at once."


class AppIdTakenError(InvalidRecordError):
    """The record names an appid (or a WeCom app) that another account keeps."""

    remedy = "Remove one of the two accounts; the other is then applied within a minute."


class RecordChangedError(KeeperError):
    """An account's record is no longer the one its credential was enrolled with."""


class RecordSupersededError(RecordChangedError):
    """A newer change of the account's record was begun while this one was applied."""


class QuotaError(KeeperError):
    """WeChat's limits leave no room for this call now; see `budget`."""

    failure_class = FailureClass.QUOTA
    remedy = "Find out who else fetches with this AppSecret, and let it ask here instead; `stable_token` isolates."


class LeaseOverError(KeeperError):
    """The renewer was held up until its lease ended: another instance may be renewing the credential."""


class StoreUnavailableError(KeeperError):
    """DynamoDB refused or did not respond; the client has already tried again."""

    code = "store_unavailable"


class ParametersUnavailableError(KeeperError):
    """Parameter Store did not respond, though botocore has already tried again; or it `refused` what was asked."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class RefresherUnavailableError(KeeperError):
    """RefreshFunction could not be asked, or did not respond in time."""


class InvalidRequestError(KeeperError):
    """The request cannot be understood; the text says what is wrong and repeats nothing of it."""

    code = "invalid_request"
    status = 400


class UnknownAccountError(KeeperError):
    """No account of that name is kept, or none with that access token."""

    code = "unknown_account"
    status = 404


class UnknownCredentialError(KeeperError):
    """The account is kept, but has no such credential."""

    code = "unknown_credential"
    status = 404


class TooManyReportsError(KeeperError):
    """Checks or calls that reports may spend are used up. `retry_after`: seconds."""

    code = "too_many_reports"
    status = 429

    def __init__(self, retry_after: int) -> None:
        super().__init__("the checks and calls that reports may spend are used up")
        self.retry_after = retry_after


class NoValidValueError(KeeperError):
    """There is no usable value right now. `cause`: why, where known; `retry_after`: seconds, at most `MAX_RETRY_AFTER`."""

    code = "no_valid_value"

    def __init__(self, cause: Failure | None, retry_after: int = 1) -> None:
        super().__init__("there is no usable value right now")
        self.cause = cause
        self.retry_after = min(max(retry_after, 1), MAX_RETRY_AFTER)


class WeChatApiError(KeeperError):
    """What WeChat would refuse with this errcode. `hint` is added to WeChat's words."""

    errcode: int

    def __init__(self, errcode: int, hint: str = "") -> None:
        super().__init__(f"errcode {errcode}")
        self.errcode = errcode
        self.hint = hint
