"""How the project is made: what its programs load (a cold start pays for each import), and how its tests are named."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FUNCTIONS = ROOT / "functions"

TOO_HEAVY = {
    *("boto3", "botocore", "requests", "urllib3", "certifi", "charset_normalizer", "aws_lambda_powertools"),
    *("aws_xray_sdk", "pydantic", "jmespath", "asyncio", "concurrent", "pathlib", "xml", "decimal", "unittest"),
}


def test_the_reader_loads_nothing_heavy() -> None:
    # When ApiFunction's module is loaded as Lambda does, which connects at once
    listed = "import sys; import api; print(*{name.partition('.')[0] for name in sys.modules})"
    environment = {
        "PYTHONPATH": str(FUNCTIONS),
        "AWS_LAMBDA_RUNTIME_API": "127.0.0.1:1",
        "AWS_REGION": "us-east-1",
        "TABLE_NAME": "tokens",
        "REFRESH_FUNCTION_NAME": "refresh",
    }
    command = [sys.executable, "-S", "-c", listed]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    # Then
    loaded = set(done.stdout.split())
    assert "token_keeper" in loaded
    assert not loaded & TOO_HEAVY


def test_an_operators_commands_load_no_emulator() -> None:
    # When all that the commands load is loaded, except those of `local`, and one is begun
    listed = (
        "import sys, atexit; import infra.cli.doctor, infra.cli.judgement; "
        "atexit.register(lambda: print(*sys.modules)); infra.cli.app(['status'])"
    )
    environment = {"PYTHONPATH": f"{FUNCTIONS}:{ROOT}", "AWS_PROFILE": "none", "HOME": "/nonexistent"}
    command = [sys.executable, "-c", listed]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "no profile 'none'" in done.stderr
    # Then neither the emulator nor a function is among it, nor what only these need
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert {"infra", "boto3"} <= loaded
    assert not loaded & {"moto", "werkzeug", "flask", "samtranslator", "aws_lambda_powertools", "refresh", "api"}
    # And no pydantic, which typer 0.29 loads to read options: 0.4 s
    assert "pydantic" not in loaded


def test_a_functions_package_imports_no_other_functions() -> None:
    # Given the packages that one function each loads, and the ground that they share
    keeper = FUNCTIONS / "token_keeper"
    owned = {"api", "refresh", "notify"}
    for file in keeper.rglob("*.py"):
        owner = file.relative_to(keeper).parts[0]
        # When its imports are read
        imported = {
            name.split(".")[1]
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            for name in ([node.module] if isinstance(node, ast.ImportFrom) else [])
            if name and name.startswith("token_keeper.")
        }
        # Then they are of its own package or the ground, and the ground imports of no package
        assert imported & owned <= {owner}, file


def test_test_names_have_at_most_60_characters() -> None:
    files = (ROOT / "tests").rglob("*.py")
    names = [name for file in files for name in re.findall(r"\bdef (test_\w+)", file.read_text(encoding="utf-8"))]

    assert names
    assert [name for name in names if len(name) > 60] == []
