"""Saving files of nodes: round trips, permissions, links, and failures that change nothing."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from node_file_parts import FULL, ONE, TWO, failure, written

from aiosollol.config.files import (
    load_nodes,
    save_nodes,
)
from aiosollol.core.node import NodeSpec
from aiosollol.errors import ConfigError


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


HOSTS = (
    st.ip_addresses(v=4).map(str)
    | st.ip_addresses(v=6).map(lambda address: f"[{address}]")
    | st.from_regex(r"[a-z][a-z0-9]{0,10}(\.[a-z]{2,5}){0,2}", fullmatch=True)
)
WORDS = st.text(st.characters(), min_size=1)  # surrogates too
HEADERS = st.text(st.characters(exclude_characters="\r\n\0"), max_size=20)


@st.composite
def specs(draw: st.DrawFn) -> NodeSpec:
    scheme = draw(st.sampled_from(["http", "https"]))
    path = draw(st.sampled_from(["", "/a", "/a/ä"]))
    hexadecimal = st.text("0123456789abcdef", min_size=64, max_size=64)
    return NodeSpec(
        f"{scheme}://{draw(HOSTS)}:{draw(st.integers(1, 65535))}{path}",
        name=draw(WORDS | st.just("")),
        priority=draw(st.integers()),
        machine=draw(WORDS | st.none()),
        headers=draw(st.dictionaries(HEADERS, HEADERS)),
        max_concurrency=draw(st.integers(1) | st.none()),
        vram_gb=draw(st.floats(0, allow_infinity=False) | st.integers(0) | st.none()),
        fingerprint=draw(hexadecimal | st.none()) if scheme == "https" else None,
    )


@settings(max_examples=50, deadline=None)  # a disk is slow at times
@given(st.lists(specs(), unique_by=(lambda spec: spec.url, lambda spec: spec.name)))
@example([])
@example([NodeSpec("http://a:1", '\ud800 \u2028 ä "\\ \n')])
def test_what_was_saved_is_loaded(nodes: list[NodeSpec]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "nodes.json")
        save_nodes(path, iter(nodes))
        again = load_nodes(path)
        assert again == nodes
        assert [spec.headers for spec in again] == [spec.headers for spec in nodes]
        text = path.read_bytes()
        save_nodes(path, again)
        assert path.read_bytes() == text
        assert os.listdir(folder) == ["nodes.json"]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([ONE, TWO, ONE], "node 3: the URL 'http://10.0.0.2:11434' is also that of node 1"),
        ([ONE, NodeSpec("http://b", "gpu1")], "node 2: the name 'gpu1' is also that of node 1"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(
    nodes: list[NodeSpec], said: str, tmp_path: Path
) -> None:
    path = written(tmp_path, "old")
    with pytest.raises(ConfigError, match=said):
        save_nodes(path, nodes)
    assert path.read_text() == "old"


def test_a_list_of_hosts_is_not_overwritten(tmp_path: Path) -> None:
    path = written(tmp_path, "10.0.0.2 # mine", "hosts.txt")
    with pytest.raises(ConfigError, match=r"nodes are saved as JSON; use .*/hosts\.json"):
        save_nodes(path, [ONE])
    assert path.read_text() == "10.0.0.2 # mine"


def test_a_new_file_is_its_owners_only_and_so_is_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "nodes.json"
    mask = os.umask(0)
    try:
        save_nodes(path, [FULL])
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o666, 0o700])
def test_an_old_file_keeps_its_mode(mode: int, tmp_path: Path) -> None:
    path = written(tmp_path, "old")
    path.chmod(mode)
    save_nodes(path, [ONE])
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert load_nodes(path) == [ONE]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_an_old_file_keeps_its_owner(tmp_path: Path) -> None:
    path = written(tmp_path, "old")
    os.chown(path, 1234, 4321)
    save_nodes(path, [ONE])
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link, far = tmp_path / "real" / "n.json", tmp_path / "link.json", tmp_path / "far.json"
    real.parent.mkdir()
    real.write_text("old")
    link.symlink_to(Path("real", "n.json"))
    far.symlink_to(link)
    save_nodes(far, [ONE])
    assert far.is_symlink()
    assert link.is_symlink()
    assert load_nodes(real) == [ONE]
    dangling = tmp_path / "dangling.json"
    dangling.symlink_to(tmp_path / "new" / "n.json")
    save_nodes(dangling, [TWO])
    assert dangling.is_symlink()
    assert load_nodes(tmp_path / "new" / "n.json") == [TWO]


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_nodes("nodes.json", [ONE])
    assert load_nodes(Path("nodes.json")) == [ONE]


def test_it_is_on_the_disk_before_it_takes_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "old")
    done = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(number: int) -> None:
        target = os.readlink(f"/proc/self/fd/{number}")
        done.append(f"fsync {'folder' if target == str(tmp_path) else Path(target).suffix}")
        if target != str(tmp_path):
            assert b"gpu1" in Path(target).read_bytes()
        fsync(number)

    def note_replace(source: str, target: str) -> None:
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    save_nodes(path, [ONE])
    assert done == ["fsync .tmp", "replace", "fsync folder"]


STEPS = ["makedirs", "mkstemp", "stat", "chmod", "fsync", "replace"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_changes_nothing(
    step: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "old")

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(tempfile if step == "mkstemp" else os, step, fail)
        with pytest.raises(ConfigError) as caught:
            save_nodes(path, [ONE])
    assert str(path) in str(caught.value)
    expected = "no permission" if number == errno.EACCES else os.strerror(number)
    assert expected in str(caught.value)
    assert caught.value.source == str(path)
    assert isinstance(caught.value.__cause__, OSError)
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupt_changes_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "old")

    def interrupt(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tempfile if step == "mkstemp" else os, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_nodes(path, [ONE])
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_what_cannot_be_synced_or_given_away_is_saved_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "old")
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)

    def refuse(*args: Any) -> Any:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "chown", refuse)
        patch.setattr(os, "open", refuse_folders(os.open, tmp_path))
        save_nodes(path, [ONE])
    assert load_nodes(path) == [ONE]


def refuse_folders(real: Any, folder: Path) -> Any:
    """Some network file systems do not let directories be opened."""

    def open_(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path) == str(folder):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, *args, **kwargs)

    return open_


def test_where_nothing_can_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, file, loop = tmp_path / "pipe", written(tmp_path, "old", "file"), tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for path, said in (
        (tmp_path, f"{tmp_path} is a directory; name a file"),
        (pipe, f"{pipe} is not a regular file; name a file"),
        (file / "x.json", "could not be written, nothing is changed: Not a directory"),
        (loop, "could not be written, nothing is changed: Too many levels of symbolic links"),
        ("/\ud800/x", "could not be written, nothing is changed: "),
        ("a\0b", "could not be written, nothing is changed: it is not a path"),
        (tmp_path / ("x" * 300), "could not be written, nothing is changed: File name too long"),
    ):
        with pytest.raises(ConfigError) as caught:
            save_nodes(path, [ONE])
        assert said in str(caught.value)
        assert caught.value.source == str(path)
    assert loop.is_symlink()
    assert leftovers(tmp_path) == []


def test_a_read_only_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "old")
    path.chmod(0o400)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write it
    with pytest.raises(ConfigError, match="no permission to write it"):
        save_nodes(path, [ONE])
    assert path.read_text() == "old"


@pytest.fixture
def other_folder() -> Iterator[Path]:
    """A directory of ours that others may enter, and nothing more."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user for a while")
def test_no_permission(other_folder: Path) -> None:
    path = written(other_folder, "old")
    path.chmod(0o600)
    os.seteuid(65534)
    try:
        read = failure(path)
        with pytest.raises(ConfigError) as caught:
            save_nodes(path, [ONE])
        with pytest.raises(ConfigError) as made:
            save_nodes(other_folder / "new" / "nodes.json", [ONE])
    finally:
        os.seteuid(0)
    assert str(read) == f"{path}: no permission to read it; run this as its owner, or chmod it"
    assert f"{path}: no permission to write it or into {other_folder}; run" in str(caught.value)
    assert f"no permission to write it or into {other_folder}; run" in str(made.value)
    assert path.read_text() == "old"
    assert os.listdir(other_folder) == ["nodes.json"]


FULL_DISK = """
import resource, sys
from aiosollol.config.files import write_text
from aiosollol.errors import ConfigError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    write_text(sys.argv[1], "x" * 100_000)
except ConfigError as error:
    print(error)
"""


def test_a_disk_that_is_full_half_way(tmp_path: Path) -> None:
    path = written(tmp_path, "old")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=60
    )
    said = f"'{path}' could not be written, nothing is changed: File too large\n"
    assert (done.stdout, done.stderr) == (said, "")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["nodes.json"]


# Saves again and again, each time in a child that kills itself one step later: before or after
# every call of a function, Python's and C's alike, until a child gets to the end.
CRASHES = """
import json, os, pathlib, signal, sys
from aiosollol.config.files import load_nodes, save_nodes
from aiosollol.core.node import NodeSpec

path = pathlib.Path(sys.argv[1])
nodes = [NodeSpec(f"http://10.0.0.{i}", headers={"x": "y" * 5000}) for i in range(1, 4)]
save_nodes(path, nodes[:1])
os.chmod(path, 0o640)
found, modes, status, step = [], set(), -1, 0
while status:
    step += 1
    child = os.fork()
    if not child:
        left, is_counting = step, False
        def count(frame, event, argument):
            global left, is_counting
            is_counting = is_counting or frame.f_code.co_name == "write_text"
            left -= is_counting
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.setprofile(count)
        save_nodes(path, nodes)
        sys.setprofile(None)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    found.append(len(load_nodes(path)))
    modes.add(oct(path.stat().st_mode & 0o777))
    for left in path.parent.iterdir():
        if left != path:
            assert left.name.startswith(".aiosollol-"), left
            assert left.stat().st_mode & 0o777 in (0o600, 0o640), left
            left.unlink()
print(json.dumps([step, found, sorted(modes)]))
"""


def test_a_crash_at_any_moment_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "nodes.json"
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    steps, found, modes = json.loads(done.stdout)
    assert steps > 100
    assert modes == ["0o640"]
    replaced = found.index(3)
    assert 20 < replaced < steps - 3
    assert found == [1] * replaced + [3] * (steps - replaced)
