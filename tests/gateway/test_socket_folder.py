"""The folder of sockets: what is removed after a process was killed, and what is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("fcntl")

from aiosollol.gateway.serving.socket_folder import SocketFolder, remove, sweep

PROGRAM = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from aiosollol.gateway.serving.socket_folder import SocketFolder
folder = SocketFolder()
print(folder.name, flush=True)
sys.stdin.read()
folder.cleanup()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def program(where: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(where)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.mark.parametrize("is_killed", [True, False])
def test_folders_of_processes_that_ended(temporary: Path, is_killed: bool) -> None:
    process, path = program(temporary)
    with process:
        (path / "0").touch()
        sweep()
        assert path.is_dir()  # it runs
        if is_killed:
            process.send_signal(signal.SIGKILL)
        else:
            assert process.stdin is not None
            process.stdin.close()
        process.wait()
    assert path.exists() is is_killed
    mine = SocketFolder()
    assert not path.exists()
    assert os.stat(mine.name).st_mode & 0o777 == 0o700
    mine.cleanup()
    assert list(temporary.iterdir()) == []


def test_what_is_left_alone(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = temporary / "other"
    other.mkdir()
    (other / "lock").touch()
    (temporary / "sollol-link").symlink_to(other)
    (temporary / "sollol-file").touch()
    (temporary / "sollol-empty").mkdir()
    linked = temporary / "sollol-linked"
    linked.mkdir()
    (linked / "lock").symlink_to(other / "lock")
    before = sorted(temporary.iterdir())
    sweep()
    assert sorted(temporary.iterdir()) == before
    dead = temporary / "sollol-dead"
    dead.mkdir()
    (dead / "lock").touch()
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    sweep()
    assert dead.is_dir()  # of another user
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    sweep()
    assert not dead.exists()


def test_removing_what_is_gone(temporary: Path) -> None:
    remove(str(temporary / "sollol-gone"))
    folder = SocketFolder()
    remove(folder.name)
    folder.cleanup()
    monkeypatched = temporary / "missing"
    tempfile.tempdir = str(monkeypatched)
    sweep()
