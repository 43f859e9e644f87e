"""The command that installs an extra works wherever aiosollol came from."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from aiosollol._install import command_for, install_command

INDEX = "pip install 'aiosollol[cli]'"
ARCHIVE = "https://example.com/aiosollol-1.0-py3-none-any.whl"
GIT = {"url": "https://example.com/x.git", "vcs_info": {"vcs": "git", "commit_id": "ab12"}}


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, INDEX),
        ({"url": ARCHIVE, "archive_info": {}}, f"pip install 'aiosollol[cli] @ {ARCHIVE}'"),
        (GIT, "pip install 'aiosollol[cli] @ git+https://example.com/x.git@ab12'"),
        ({"url": "file:///no/such/folder", "dir_info": {}}, INDEX),
        ({}, INDEX),
        ([], INDEX),
        ({"url": 5, "dir_info": {}}, INDEX),
        ({"url": "https://example.com", "vcs_info": {}}, INDEX),
    ],
)
def test_origins(origin: Any, command: str) -> None:
    assert command_for("cli", None if origin is None else json.dumps(origin)) == command


def test_a_file_that_is_no_json() -> None:
    assert command_for("cli", "{") == INDEX


@pytest.mark.parametrize("is_editable", [True, False])
def test_a_folder(tmp_path: pathlib.Path, is_editable: bool) -> None:
    folder = tmp_path / "my checkout"
    folder.mkdir()
    origin = {"url": folder.as_uri(), "dir_info": {"editable": is_editable}}
    option = "-e " * is_editable
    assert command_for("cli", json.dumps(origin)) == f"pip install {option}'{folder}[cli]'"


def test_here() -> None:
    assert install_command("cli").endswith("[cli]'")
