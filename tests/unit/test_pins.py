"""Each package that is installed has one version, wherever it is installed from. `.ci/pin` writes what is read here."""

import re
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
UV: dict[str, list[str]] = PROJECT["tool"]["uv"]
FILES = ("functions/requirements.txt", "infra/requirements.txt")

OWN = set(PROJECT["tool"]["uv"]["sources"])
"""Packages of this repository."""

PIN = re.compile(r"([a-z0-9-]+)(?:\[[a-z0-9,-]+\])?==([^; ]+)")


def pins(requirements: list[Any]) -> dict[str, str]:
    """Versions by name; a requirement that leaves a choice fails the test."""
    found = [
        (item, PIN.match(item)) for item in requirements if isinstance(item, str) and item.partition("[")[0] not in OWN
    ]
    assert not [item for item, pinned in found if not pinned]
    return {pinned[1]: pinned[2] for _, pinned in found if pinned}


@pytest.fixture
def locked() -> dict[str, dict[str, Any]]:
    """What uv resolved when it ran this test."""
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    return {
        package["name"]: package for package in packages if package["name"] not in {PROJECT["project"]["name"], *OWN}
    }


def test_every_package_has_one_version(locked: dict[str, dict[str, Any]]) -> None:
    named = pins([*chain(PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"].values())])
    constrained = pins(UV["constraint-dependencies"])
    assert not named.keys() & constrained.keys()
    assert named | constrained == {name: package["version"] for name, package in locked.items()}
    # And none is built on this machine, by tools whose versions would be open
    assert not [name for name, package in locked.items() if not package.get("wheels")]


def test_the_build_backend_has_one_version() -> None:
    assert pins(PROJECT["build-system"]["requires"]).items() <= pins(UV["build-constraint-dependencies"]).items()


@pytest.mark.parametrize("file", FILES)
def test_hashes_are_of_the_same_versions(file: str, locked: dict[str, dict[str, Any]]) -> None:
    text = (ROOT / file).read_text()
    requirements = [line for line in text.splitlines() if not line.startswith("    --hash=sha256:")]
    for name, version in pins(requirements).items():
        assert version == locked[name]["version"], name
    # And no registry is named
    assert "://" not in text
    assert "--index" not in text


def test_an_operator_installs_nothing_of_the_emulator() -> None:
    requirements = (ROOT / "infra/requirements.txt").read_text()
    assert {"boto3", "typer", "aws-sam-cli", "hatchling"} <= set(
        re.findall(r"^([a-z0-9-]+)", requirements, re.MULTILINE)
    )
    assert not re.findall(r"^(?:moto|flask-cors|aws-lambda-powertools)\b", requirements, re.MULTILINE)
