"""What `sam build` packages: the tracked sources and the pinned libraries, whatever else is in the directory, wherever it is built."""

import re
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from tests.e2e.conftest import build_or_skip, copy
from tests.support.lambda_runtime import PROJECT

FUNCTIONS = ("ApiFunction", "RefreshFunction")
STRAYS = (
    ".env",
    "notes.txt",
    "scratch.py",
    "token_keeper/scratch.py",
    "token_keeper/__pycache__/model.cpython-313.pyc",
)

pytestmark = pytest.mark.xdist_group("dynamodb-local")

type Package = dict[str, str]
"""Digests of a package's files by path."""


def packages(built: Path) -> dict[str, Package]:
    """What would be uploaded for each function."""
    return {function: files(built / function) for function in FUNCTIONS}


def files(directory: Path) -> Package:
    found = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the project, with strays among its sources."""
    project = copy(tmp_path_factory.mktemp("project"))
    for command in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", "-C", project, *command], check=True)
    for stray in STRAYS:
        (project / "functions" / stray).parent.mkdir(exist_ok=True)
        (project / "functions" / stray).write_text("a stray")
    return project


@pytest.fixture(scope="module")
def built(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    return packages(build_or_skip(tmp_path_factory.mktemp("built"), project))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_package_is_tracked_sources_and_pinned_libraries(built: dict[str, Package], function: str) -> None:
    # Given the project's sources, and what pip installs from requirements.txt, without lists of files and commands
    sources = {name: digest for name, digest in files(PROJECT / "functions").items() if name.endswith(".py")}
    pinned = re.findall(r"^([a-z0-9-]+)==(\S+)", (PROJECT / "functions/requirements.txt").read_text(), re.MULTILINE)
    # Then the sources are packaged as they are
    package = built[function]
    assert {name: package[name] for name in sources} == sources
    # And beside them there are only those libraries, for RefreshFunction
    libraries = {name.partition("/")[0] for name in package.keys() - sources.keys()}
    installed = {name for name in libraries if name.endswith(".dist-info")}
    expected = {f"{name.replace('-', '_')}-{version}.dist-info" for name, version in pinned}
    assert installed == (expected if function == "RefreshFunction" else set())
    assert len(libraries) == 2 * len(installed)
    assert not [name for name in package if name.endswith((".pyc", "/RECORD", "scratch.py"))]


def test_a_package_is_the_same_for_both_architectures(built: dict[str, Package]) -> None:
    machine_code = (".so", ".dylib", ".pyd")
    assert not [name for package in built.values() for name in package if name.endswith(machine_code)]


def test_what_is_built_again_elsewhere_is_the_same(built: dict[str, Package], built_download: Path) -> None:
    assert packages(built_download) == built
