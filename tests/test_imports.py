"""`import aiosollol` is light: it loads no extra. How long it takes: benchmarks/start_up.py."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys

import aiosollol

# What the extras bring, what is loaded where it is used, and what should never come along.
HEAVY = {
    "aiohttp",
    "dask",
    "distributed",
    "fastapi",
    "httpx",
    "ifaddr",
    "netifaces",
    "numpy",
    "ollama",
    "opentelemetry",
    "prometheus_client",
    "pybase64",
    "simdjson",
    "pydoc_data",
    "ray",
    "redis",
    "requests",
    "rich",
    "sqlite3",
    "starlette",
    "tokenizers",
    "trio",
    "typer",
    "uvicorn",
    "uvloop",
    "wordllama",
    "zeroconf",
}
OWN = {
    "aiosollol.cli",
    "aiosollol.embedded",
    "aiosollol.gateway",
    "aiosollol.testing",
}


def loaded_by(code: str) -> set[str]:
    """The names in `sys.modules` of a new interpreter that ran `code`."""
    shown = f"{code}\nimport json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", shown], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_no_extra() -> None:
    loaded = loaded_by("import aiosollol")
    assert "aiosollol" in loaded
    assert not {name for name in loaded if name.partition(".")[0] in HEAVY}
    assert not {name for name in loaded if ".".join(name.split(".")[:2]) in OWN}


def test_importing_starts_nothing() -> None:
    done = loaded_by(
        "import logging, threading\n"
        "import aiosollol\n"
        "assert threading.active_count() == 1\n"
        "assert not logging.getLogger().handlers"
    )
    assert done


def test_public_names_exist() -> None:
    """`__all__` of the package and of each of its parts names what is there, each once."""
    parts = [part.name for part in pkgutil.iter_modules(aiosollol.__path__)]
    for name in ("", *(f".{part}" for part in parts if part != "__main__")):
        module = importlib.import_module(f"aiosollol{name}")
        names = list(getattr(module, "__all__", ()))
        assert len(set(names)) == len(names), module.__name__
        assert [name for name in names if not hasattr(module, name)] == [], module.__name__


def test_what_loads_much_is_loaded_when_it_is_named() -> None:
    before = loaded_by("import aiosollol; assert {'discover', 'Discovered'} <= set(dir(aiosollol))")
    after = loaded_by("from aiosollol import discover, discover_ollama_nodes")
    assert "aiosollol.discovery" not in before
    assert "aiosollol.discovery" in after


def test_a_name_that_is_none_is_an_error_as_ever() -> None:
    loaded_by("import aiosollol\nassert not hasattr(aiosollol, 'discovr')")
