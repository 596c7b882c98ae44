"""The keys of a local stack: made for each run, and kept in files that only their owner can read.

Below `~/.wechat-token-keeper/local-PORT`, PORT being the API's: `credentials` holds an AWS profile for each role, in the
format of the AWS command line, and `api-key` the header that the HTTP API asks for, in the format of `curl --header @FILE`.
"""

import io
import os
import shutil
from collections.abc import Mapping
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex, token_urlsafe

import boto3
import botocore.session
from botocore.config import Config

LOCAL_STACK = "local"
"""The name of the stack that `token-keeper local` runs."""

REGION = "us-east-1"

OPERATOR = "operator"
"""The role that may do everything, as the operator who deployed a stack may."""

API_KEY_HEADER = "X-Api-Key"


@dataclass(frozen=True)
class Key:
    """An AWS access key of this machine."""

    access_key: str
    secret_key: str = field(repr=False)

    @classmethod
    def of(cls, role: str) -> "Key":
        """A new access key; its id shows the role."""
        return cls(f"{role}{token_hex(8)}", token_urlsafe(30))


@dataclass(frozen=True)
class LocalKeys:
    """What the local stack on a port has written for its operator."""

    endpoint_url: str
    operator: Key
    api_key: str = field(repr=False)


class KeysError(Exception):
    """The keys cannot be written; the text says where, and why."""


def folder(port: int) -> Path:
    """Where the keys of the local stack whose API is on that port are kept."""
    return Path.home() / ".wechat-token-keeper" / f"local-{port}"


def api_key_file(port: int) -> Path:
    """The file that holds the HTTP API's key as a header."""
    return folder(port) / "api-key"


def write(port: int, endpoint_url: str, keys: Mapping[str, Key], api_key: str) -> None:
    """Write the key of each role, and the HTTP API's. Raises KeysError where that cannot be done."""
    profiles = ConfigParser(interpolation=None)
    for role, key in keys.items():
        profiles[role] = {
            "aws_access_key_id": key.access_key,
            "aws_secret_access_key": key.secret_key,
            "region": REGION,
            "endpoint_url": endpoint_url,
        }
    text = io.StringIO()
    profiles.write(text)
    remove(port)
    try:
        folder(port).mkdir(mode=0o700, parents=True)
        _write(folder(port) / "credentials", text.getvalue())
        _write(api_key_file(port), f"{API_KEY_HEADER}: {api_key}\n")
    except OSError as error:
        raise KeysError(f"its keys cannot be written to {folder(port)} ({error.strerror})") from None


def _write(path: Path, text: str) -> None:
    # Exclusively: nothing is written into a file that another user has put there.
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(text)


def read(port: int) -> LocalKeys | None:
    """The operator's keys of the local stack whose API is on that port; None where there are none, or none to be read."""
    profiles = ConfigParser(interpolation=None)
    try:
        profiles.read(folder(port) / "credentials", encoding="ascii")
        operator = profiles[OPERATOR]
        header = api_key_file(port).read_text(encoding="ascii")
        return LocalKeys(
            operator["endpoint_url"],
            Key(operator["aws_access_key_id"], operator["aws_secret_access_key"]),
            header.partition(": ")[2].rstrip("\n"),
        )
    except (OSError, ConfigParserError, KeyError, UnicodeDecodeError):
        return None


def remove(port: int) -> None:
    """Delete the keys; nothing happens where there are none."""
    shutil.rmtree(folder(port), ignore_errors=True)


def session(key: Key) -> boto3.Session:
    """A session with that key. The AWS configuration of this machine's user, which is about another AWS, is left alone."""
    nothing = dict.fromkeys(("config_file", "credentials_file"), (None, None, os.devnull, None))
    own = botocore.session.Session(session_vars={"profile": (None, None, None, None), **nothing})
    own.set_default_client_config(Config(proxies={}))  # no proxy reaches this machine's own address
    return boto3.Session(key.access_key, key.secret_key, region_name=REGION, botocore_session=own)
