"""The programs of the dependency group `ci`: what needs one is left out where it is not installed, but not in CI."""

import os
from importlib import import_module
from typing import Any

import pytest

HOW_TO_HAVE_THEM = "`uv run --group ci pytest` runs it"


def needed(module: str) -> Any:
    """The module; without it, the test that asks is skipped, or the file where it asks while it is loaded.

    With the environment variable `CI` set nothing may be left out: ImportError.
    """
    if os.environ.get("CI"):
        return import_module(module)
    package = module.partition(".")[0]
    return pytest.importorskip(module, reason=f"needs {package}: {HOW_TO_HAVE_THEM}")
