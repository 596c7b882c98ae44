"""What the operator's tools raise."""


class OperatorError(Exception):
    """What prevents the operator's command, and what to do about it, in plain words that never hold a secret.

    `exit_code`: what the command line exits with.
    """

    exit_code = 2


class UnknownAccountError(OperatorError):
    """The API keeps no account of that name."""


class NoTokenError(OperatorError):
    """The account has no usable token right now."""

    exit_code = 1
