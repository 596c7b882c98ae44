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
└── RefresherUnavailableError     RefreshFunction
(WeChat's own, and those that the API responds with, are defined beside the code that raises them.)
"""

from token_keeper.model import Failure, FailureClass


class KeeperError(Exception):
    """Base of every error this project raises.

    `code` and `status`: what a problem document of the API calls it, and its HTTP status. `failure_class`, `errcode` and
    `remedy`: as health shows it.
    """

    code = "unavailable"
    status = 503
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
