"""The command line as its users run it: in a process of its own, over real embedded nodes.

A process takes a while to start, so commands that do not depend on each other run side by side.
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aiosollol._install import install_command

DEADLINE = 120.0  # a hang fails; nothing is measured

COMMAND = (sys.executable, "-W", "error", "-m", "aiosollol")


@contextmanager
def started(*args: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The command line. Every process that it started is gone when it has ended."""
    mark = f"test-{uuid.uuid4()}"  # inherited by what it starts, whatever session that is in
    environment = {**os.environ, "AIOSOLLOL_MARK": mark} | options.pop("env", {})
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    process = subprocess.Popen(
        [*COMMAND, *args], start_new_session=True, env=environment, **options
    )
    try:
        yield process
        process.wait(DEADLINE)
        assert living(mark) == []
    finally:
        for pid in living(mark):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def living(mark: str) -> list[int]:
    """The processes whose environment has the mark, by Linux's /proc; none where there is none."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in file.read_bytes():
                found.append(int(file.parent.name))
        except OSError:
            continue  # it ended while we looked, or is not ours
    return found


class Running:
    """A command under way. `result` waits for its end."""

    def __init__(self, *args: str, input: str = "", env: dict[str, str] | None = None) -> None:
        self._ended: list[tuple[str, str]] = []
        self._process = subprocess.Popen(
            [*COMMAND, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        # A few words: they fit into the pipe, so that this does not wait for the command.
        assert self._process.stdin is not None
        assert len(input) < 4096
        self._process.stdin.write(input)
        self._process.stdin.close()
        self._process.stdin = None

    def result(self, code: int = 0) -> tuple[str, str]:
        """What it wrote to stdout and to stderr."""
        try:
            out, err = self._process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise
        assert self._process.returncode == code, err
        assert "Traceback" not in err
        return out, err


def run(*args: str, code: int = 0, **options: Any) -> tuple[str, str]:
    return Running(*args, **options).result(code)


# --- without a node


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra_it_says_what_to_install(package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from aiosollol.cli import main\n"
        "sys.exit(main(['--version']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert install_command("cli") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_gone_ends_it_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{closed_port()}"}
    down = f"--node=127.0.0.1:{closed_port()}"
    commands = (["--version"], ["--help"], ["nodes", "--json"], ["nodes", down], ["config"])
    try:
        running = [
            subprocess.Popen(
                [*COMMAND, *args], stdout=writer, stderr=subprocess.PIPE, env=environment
            )
            for args in commands
        ]
    finally:
        os.close(writer)
    ends = []
    for process in running:
        _, errors = process.communicate(timeout=DEADLINE)
        ends.append((process.returncode, errors))
    assert ends == [(1, b"")] * len(commands)


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_a_node_that_does_not_answer_is_shown() -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    as_json, as_table = Running("nodes", "--json", "--node", url), Running("nodes", "--node", url)
    (node,) = json.loads(as_json.result(code=1)[0])["nodes"]
    assert (node["url"], node["answers"]) == (url, False)
    assert node["error"]
    assert node["error"] in as_table.result(code=1)[0]


def test_no_node_at_all_says_what_to_do(tmp_path: Path) -> None:
    out = tmp_path / "v.npy"
    url = f"http://127.0.0.1:{closed_port()}"
    _, told = run("embed", "--node", url, "--out", str(out), input="some text", code=1)
    assert "1 of 1 passages are missing" in told
    assert f"127.0.0.1:{url.rpartition(':')[2]}: " in told
    assert "ollama serve" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_goes_on_with_zero(number: signal.Signals) -> None:
    """On loopback alone: nothing is announced, and no network is searched."""
    pytest.importorskip("psutil")
    port = closed_port()
    watch = ("discover", "--watch", "--subnet=127.0.0.1", f"--port={port}", "--no-zeroconf")
    agent = ("agent", "--no-advertise", "--port=0", "--url", f"127.0.0.1:{port}")
    environment = {"OLLAMA_HOST": f"127.0.0.1:{port}"}
    with started(*watch, env=environment) as watching, started(*agent) as serving:
        wait_for(watching.stdout, "Watching for nodes")
        wait_for(serving.stdout, r"The agent is at http://127\.0\.0\.1:\d+/agent")
        for process in (watching, serving):
            process.send_signal(number)
        said = [process.communicate(timeout=DEADLINE) for process in (watching, serving)]
    assert [watching.returncode, serving.returncode] == [0, 0]
    assert [err for _, err in said] == ["", ""]
    assert said[1][0].endswith("The agent has ended.\n")


# --- with embedded nodes


@pytest.fixture(scope="module")
def node() -> Iterator[str]:
    """The URL of `aiosollol node`, which SIGTERM ends."""
    pytest.importorskip("wordllama")
    port = closed_port()
    with started("node", "--port", str(port)) as process:
        wait_for(process.stdout, r"http://127\.0\.0\.1:\d+")
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def wait_for(stream: Any, pattern: str) -> str:
    """Read lines until one matches."""
    for line in stream:
        if re.search(pattern, line):
            return str(line)
    raise AssertionError(f"the output ended before {pattern!r}")


def test_nodes_shows_a_real_node(node: str) -> None:
    as_json, as_table = Running("nodes", "--json", "--node", node), Running("nodes", "--node", node)
    (shown,) = json.loads(as_json.result()[0])["nodes"]
    assert shown["answers"]
    assert shown["models"] == ["wordllama:latest"]
    assert "wordllama" in as_table.result()[0]


def test_embed_over_a_node_that_is_named_or_in_the_environment(node: str) -> None:
    named = Running("embed", "--node", node, "--model", "wordllama", input="One text.")
    environment = {"OLLAMA_HOST": node}
    found = Running("embed", "-", "--model=wordllama", input="One text.", env=environment)
    vectors, _ = named.result()
    assert vectors == found.result()[0]
    assert len(json.loads(vectors)["embedding"]) == 256


def test_a_model_that_no_node_has_is_named(node: str) -> None:
    _, told = run("embed", "--node", node, input="text", code=1)
    assert "no node has the model 'nomic-embed-text'" in told
    assert "wordllama" in told


def test_plan_and_stats_of_a_real_node(node: str) -> None:
    planned = Running("plan", "--node", node, "--model=wordllama", "--sizes=1000", "--json")
    counted = Running("stats", "--node", node, "--model=wordllama", "--json")
    plan, stats = json.loads(planned.result()[0]), json.loads(counted.result()[0])
    (entry,) = plan["sizes"]
    assert (entry["mode"], entry["reason"]) == ("single-node stream", "single_node")
    assert entry["predicted_seconds"] > 0
    assert plan["measured"]["errors"] == {}
    assert stats["nodes"][0]["healthy"]
    assert stats["nodes"][0]["requests"] >= 2


def test_route_verify_and_warm_of_a_real_node(node: str) -> None:
    options = ("--node", node, "--model=wordllama", "--json")
    routed, verified = Running("route", *options), Running("verify", *options)
    route, verify = json.loads(routed.result()[0]), json.loads(verified.result()[0])
    warm = json.loads(run("warm", *options)[0])
    name = node.removeprefix("http://")
    assert route["chosen"] == name
    assert route["nodes"][0]["terms"]["own"] > 0
    assert (verify["reference"], verify["different"], verify["failed"]) == (name, [], {})
    assert list(warm["seconds"]) == [name]


def test_embedded_needs_no_node(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    text, out = tmp_path / "a.txt", tmp_path / "v.npy"
    text.write_text("\n\n".join(f"Paragraph number {i} of many." for i in range(1100)))
    args = ("embed", str(text), "--embedded", "--passage-size=40", "--out", str(out), "--json")
    summary = json.loads(run(*args)[0])
    vectors = numpy.load(out)
    assert vectors.shape == (summary["passages"], 256) == (1100, 256)
    assert numpy.isfinite(vectors).all()
    assert numpy.allclose(numpy.linalg.norm(vectors, axis=1), 1, atol=1e-3)


def test_embed_into_head_ends_quietly(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("\n\n".join(f"Paragraph number {i} of many." for i in range(1100)))
    with started("embed", str(text), "--embedded", "--passage-size=40") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["start"] == 0
        process.stdout.close()
        told = process.stderr.read()
    assert process.returncode == 1
    assert "Traceback" not in told
    assert "rror" not in told


# The question asked, and what only a passage that answers it says.
ANSWERS = {
    "finally": r"finally.{1,9}clause\s+is\s+executed",
    "upper and lower": "caseless",
    "dividing": "yields a float",
    "no value yet": "UnboundLocalError",
}


def test_demo_answers_the_questions() -> None:
    with started("demo") as process:
        shown, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, errors
    assert errors == ""
    assert "\x1b" not in shown
    for name in ("node-1", "node-2", "node-3"):
        assert len(re.findall(rf"^{name} ", shown, re.MULTILINE)) == 2  # found, and its share
    assert re.search(r"^Plan: fan-out of \d+ items \(measuring\): ", shown, re.MULTILINE)
    assert 'same_machine="share"' in shown
    assert re.search(r"embedding: ([\d,]+) of \1", shown)
    assert "items/s" in shown
    blocks = shown.split("\n\n")
    for asked, answer in ANSWERS.items():
        (block,) = [b for b in blocks if asked in b.partition("\n")[0] and "?" in b]
        best = block.split("from the topic")[1]
        assert re.search(answer, " ".join(best.split())), block


def test_demo_as_json_on_a_terminal() -> None:
    """The JSON goes to stdout, which is a pipe; what people see goes to the terminal."""
    ours, theirs = pty.openpty()
    env = {"TERM": "xterm-256color", "COLUMNS": "100"}
    with started("demo", "--json", stderr=theirs, stdin=theirs, env=env) as process:
        os.close(theirs)
        shown = read_terminal(ours)
        assert process.stdout is not None
        result = json.loads(process.stdout.read())
    assert process.returncode == 0
    assert "\x1b[" in shown
    assert "━" in shown
    assert "Traceback" not in shown
    assert result["dim"] == 256
    assert result["plan"].startswith("fan-out of ")
    assert sum(node["items"] for node in result["nodes"].values()) == result["different"]
    scores = [p["score"] for answer in result["answers"] for p in answer["passages"]]
    assert len(scores) == 2 * len(ANSWERS)
    assert all(0.3 < score <= 1 for score in scores)


@pytest.mark.parametrize(
    ("moment", "interrupts_all"), [("Starting", True), ("node-1 ", False), ("embedding", True)]
)
def test_a_signal_ends_the_demo_and_its_nodes(moment: str, interrupts_all: bool) -> None:
    """A terminal sends Ctrl-C to the whole group; `kill` and supervisors to one process.

    Each signal is sent at each moment, and each of both in either way.
    """

    def strike(number: signal.Signals, to_all: bool) -> tuple[int, str]:
        with started("demo") as process:
            wait_for(process.stdout, moment)
            (os.killpg if to_all else os.kill)(process.pid, number)
            _, errors = process.communicate(timeout=DEADLINE)
        return process.returncode, errors

    with ThreadPoolExecutor() as side_by_side:
        struck = {
            signal.SIGINT: side_by_side.submit(strike, signal.SIGINT, interrupts_all),
            signal.SIGTERM: side_by_side.submit(strike, signal.SIGTERM, not interrupts_all),
        }
    for number, future in struck.items():
        code, errors = future.result()
        # The last moment is close to the end of the demo, which may come first.
        ends = {128 + number} if moment != "embedding" else {128 + number, 0}
        assert code in ends
        assert "Traceback" not in errors


def read_terminal(terminal: int) -> str:
    chunks = []
    with open(terminal, "rb", buffering=0) as file:
        while True:
            try:
                chunk = file.read(65536)
            except OSError:  # EIO: Linux's end of file, when nobody holds the other side
                chunk = b""
            if not chunk:
                return b"".join(chunks).decode()
            chunks.append(chunk)
