"""What the readers load: each of these would cost every cold start more than reading and answering do."""

import subprocess
import sys
from pathlib import Path

FUNCTIONS = Path(__file__).parents[2] / "functions"

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
