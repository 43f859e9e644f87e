"""`nox` runs lint, typing, tests, clients, engines and examples; `nox -s bench` the benchmarks.

Versions, extras and dependency groups are those of pyproject.toml. Words after `--` go to the
tool: `nox -s tests -- -k embeddings -x`.
"""

from __future__ import annotations

import os
import shutil

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|venv"  # uv, if it is installed, is faster
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False  # for tests_on; the other sessions have theirs
nox.options.reuse_venv = "yes"

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
EXTRAS = "demo,agent,gateway,otel"  # what the code of today can use; grows with it
CLIENTS = "tests/clients"
ENGINES = "tests/engines"
PLATFORMS = (
    *("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"),
    *("x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"),
    *("x86_64-apple-darwin", "aarch64-apple-darwin"),
    *("x86_64-pc-windows-msvc", "aarch64-pc-windows-msvc"),
)
NPM_OLLAMA = "ollama@0.6.4"


def group(name: str) -> list[str]:
    """The requirements of a dependency group of pyproject.toml."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


@nox.session
def lint(session: nox.Session) -> None:
    """Style, common mistakes, and which package may import which: ruff, import-linter."""
    session.install(*group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")
    session.run("lint-imports", env={"PYTHONPATH": "."})


@nox.session
def typing(session: nox.Session) -> None:
    """mypy --strict over the package and the file that pins the public signatures."""
    session.install("-e", f".[{EXTRAS}]", *group("typing"))
    session.run("mypy", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite, on the Python that runs nox."""
    run_tests(session)


@nox.session(python=PYTHONS, default=False)
def tests_on(session: nox.Session) -> None:
    """The test suite, on every supported Python that is installed."""
    run_tests(session)


@nox.session
def clients(session: nox.Session) -> None:
    """The gateway against clients that drag in much, and schemathesis: tests/clients.

    The npm package goes to a folder of this session. Without npm its test says what is missing.
    """
    session.install("-e", f".[{EXTRAS}]", *group("test"), *group("clients"))
    env = {}
    if shutil.which("npm"):
        folder = env["AIOSOLLOL_NPM"] = os.path.abspath(session.create_tmp())
        told = ("--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts")
        session.run("npm", "install", "--prefix", folder, *told, NPM_OLLAMA, external=True)
    session.run("pytest", CLIENTS, *session.posargs, env=env)


@nox.session
def engines(session: nox.Session) -> None:
    """The real Dask and Ray, with workers in processes of their own: tests/engines, an example."""
    session.install("-e", f".[{EXTRAS},dask,ray]", *group("test"))
    session.run("pytest", ENGINES, *session.posargs)
    session.run("pytest", "examples", "-k", "dask_batch")  # skipped where Dask is not installed


@nox.session
def examples(session: nox.Session) -> None:
    """Every file in examples/, as a process, with real requests, against embedded nodes.

    Installs a wheel, not the source tree: what is missing in it is missed here.
    """
    session.install(f".[{EXTRAS}]", *group("examples"))
    session.run("pytest", "examples", *session.posargs)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Random changes of valid inputs for each parser, and of requests for the gateway: 15 minutes.

    The test suite does the same for a moment. `-- -k http1` does it for one parser.
    """
    session.install("-e", f".[{EXTRAS}]", *group("test"), *group("clients"))
    words = ("-n", "2", "-q", *session.posargs)
    session.run("pytest", "tests/fuzz", *words, env={"AIOSOLLOL_FUZZ_SECONDS": "36"})
    schema = f"{CLIENTS}/test_clients_schema.py"
    session.run("pytest", schema, *session.posargs, env={"AIOSOLLOL_TEST_EXAMPLES": "200"})


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Client, gateway, engines, scheduler, routing, discovery, chaos: see benchmarks/README.md.

    The peers live in this session's environment and nowhere else. Words after `--` go to
    `python -m benchmarks.client`.
    """
    session.install(f".[{EXTRAS},dask,ray]", *group("bench"))
    session.run("python", "-m", "benchmarks.start_up")
    session.run("python", "-m", "benchmarks.client", "--peers", *session.posargs)
    session.run("python", "-m", "benchmarks.simulate")
    session.run("python", "-m", "benchmarks.makespan")
    session.run("python", "-m", "benchmarks.routing")
    session.run("python", "-m", "benchmarks.discovery")
    session.run("python", "-m", "benchmarks.chaos")
    session.run("python", "-m", "benchmarks.gateway")
    session.run("python", "-m", "benchmarks.engines")


@nox.session(default=False)
def wheels(session: nox.Session) -> None:
    """The core needs no compiler: each dependency has a wheel for each platform and Python.

    By uv, which evaluates markers for the platform it resolves for; pip takes those of this one.
    """
    session.install("uv")
    for platform in PLATFORMS:
        for python in (*PYTHONS, "3.14"):
            target = ("--python-platform", platform, "--python-version", python)
            asked = ("uv", "pip", "compile", "--quiet", "--only-binary", ":all:", *target)
            session.run(*asked, "pyproject.toml", silent=True)


def run_tests(session: nox.Session) -> None:
    """Two processes: one of them waits much of the time, and each may take 3 GB.

    For coverage, `nox -s tests -- --cov --cov-report=term-missing`.
    """
    session.install("-e", f".[{EXTRAS}]", *group("test"), *group("gateway-clients"))
    others = (f"--ignore={CLIENTS}", f"--ignore={ENGINES}")
    session.run("pytest", "-n", "2", "--durations=10", *others, *session.posargs)
