"""The id of a machine: always the same, and not the one that its system keeps to itself."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import pytest

from aiosollol.discovery import local_machine
from aiosollol.discovery.local_machine import hashed, machine_id
from aiosollol.errors import ConfigError

RAW = "9e2b3f0c4d5a4e6f8091a2b3c4d5e6f7"


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    local_machine._own_id.cache_clear()
    yield
    local_machine._own_id.cache_clear()


def with_files(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    def open_file(path: str, **options: Any) -> io.StringIO:
        if path not in files:
            raise FileNotFoundError(path)
        return io.StringIO(files[path])

    monkeypatch.setattr(local_machine, "open", open_file, raising=False)


def test_it_is_short_and_stable_and_hides_the_raw_id() -> None:
    # As published: with another result, all nodes would seem to have moved to other machines.
    assert hashed(RAW) == "fb444b7fcaacee9b"
    assert hashed(RAW) != hashed(RAW[::-1])
    assert RAW[:16] != hashed(RAW) != RAW[16:]
    assert re.fullmatch("[0-9a-f]{16}", machine_id({}))
    assert machine_id({}) == machine_id({})


def test_the_files_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    other = RAW[::-1]
    with_files(monkeypatch, {"/etc/machine-id": f"{RAW}\n", "/var/lib/dbus/machine-id": other})
    assert machine_id({}) == hashed(RAW)


@pytest.mark.parametrize("content", ["", "uninitialized\n", "not an id", RAW[:31]])
def test_a_file_without_an_id_does_not_count(monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    with_files(monkeypatch, {"/etc/machine-id": content, "/var/lib/dbus/machine-id": RAW})
    assert machine_id({}) == hashed(RAW)


def test_without_files_it_is_the_hardware_or_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with_files(monkeypatch, {})
    monkeypatch.setattr("uuid.getnode", lambda: 0x001122334455)
    assert machine_id({}) == hashed("001122334455")
    local_machine._own_id.cache_clear()
    monkeypatch.setattr("uuid.getnode", lambda: 0x011122334455)  # random: the multicast bit is set
    monkeypatch.setattr("socket.gethostname", lambda: "gpu-box")
    assert machine_id({}) == hashed("gpu-box")


def test_the_variable_overrides_it() -> None:
    assert machine_id({"SOLLOL_MACHINE_ID": " rack-3.left "}) == "rack-3.left"
    assert machine_id({"SOLLOL_MACHINE_ID": " "}) == machine_id({})


@pytest.mark.parametrize("value", ["a b", "-x", "é", "x" * 65, "a\x00"])
def test_a_variable_that_cannot_be_told_to_others(value: str) -> None:
    with pytest.raises(ConfigError, match="SOLLOL_MACHINE_ID") as caught:
        machine_id({"SOLLOL_MACHINE_ID": value})
    assert caught.value.source == "SOLLOL_MACHINE_ID"
