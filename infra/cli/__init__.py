"""The command line `token-keeper`: runs the local stack, and operates a deployed or a local one.

Exit codes: 0 all well, 1 an operator is needed (`status`, `doctor`), it was not done (`refresh`, `token`), WeChat refused it
(`accounts`) or the operator said no, 2 wrong usage or something prevented it; standard error says what.
"""

from infra.cli import accounts, console, consumers, health, local, notifications
from infra.cli.program import app

__all__ = ["accounts", "app", "console", "consumers", "health", "local", "notifications"]
