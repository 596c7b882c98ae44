"""Errors of the keeper: one base, a stable `code`, and whether trying again helps. No message ever carries a value."""


class KeeperError(Exception):
    """Base of every error this project raises.

    `code` is stable and machine-readable; `retryable` says whether the same call may succeed later
    without anybody changing anything.
    """

    code = "keeper_error"
    retryable = False


class InvalidRecordError(KeeperError):
    """An account's parameter does not hold a usable record. The text says what is wrong, never the value."""

    code = "invalid_record"


class RecordChangedError(KeeperError):
    """An account's record is no longer the one its credential was enrolled with."""

    code = "record_changed"
    retryable = True


class BudgetError(KeeperError):
    """WeChat's limits leave no room for this call now; see `budget`."""

    code = "budget_used_up"
    retryable = True


class LeaseOverError(KeeperError):
    """Whoever renews was held up for so long that somebody else may do so by now."""

    code = "lease_over"
    retryable = True


class StoreUnavailableError(KeeperError):
    """DynamoDB refused or did not answer; the client has already tried again."""

    code = "store_unavailable"
    retryable = True


class ParametersUnavailableError(KeeperError):
    """Parameter Store did not answer, though botocore has already tried again; or it `refused` what was asked."""

    code = "parameters_unavailable"
    retryable = True

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class RefresherUnavailableError(KeeperError):
    """RefreshFunction could not be asked, or did not answer in time."""

    code = "refresher_unavailable"
    retryable = True
