"""What can go wrong. No text, attribute, cause or context of these exceptions holds a token, a ticket or a key.

KeeperError
├── SetupError                 the address, the key or an argument is wrong (also a ValueError)
├── AccessDeniedError          the key, the AWS identity or its permission is not accepted
├── UnknownCredentialError     the account has no such token or ticket
└── UnavailableError           no usable value right now: asking again later helps
    ├── UnreachableError       the keeper did not respond
    └── NotEnoughTimeError     the value works, but not for `minimum_seconds`
"""


class KeeperError(Exception):
    """Base of all. `problem`: what is wrong; `remedy`: what to do about it."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}. {self.remedy}"


class SetupError(KeeperError, ValueError):
    """The address, the key or an argument is wrong: the program or its configuration has to be corrected."""


class AccessDeniedError(KeeperError):
    """The key, the AWS identity or its permission is not accepted."""


class UnknownCredentialError(KeeperError):
    """The account has no such token or ticket."""


class UnavailableError(KeeperError):
    """There is no usable value right now. `retry_after`: seconds until it makes sense to ask again."""

    def __init__(self, problem: str, remedy: str, retry_after: float = 1) -> None:
        super().__init__(problem, remedy)
        self.args = (problem, remedy, retry_after)
        self.retry_after = retry_after


class UnreachableError(UnavailableError):
    """The keeper did not respond, and no cached value is promised any longer."""


class NotEnoughTimeError(UnavailableError):
    """The current value works, but not for as long as `minimum_seconds` asks."""
