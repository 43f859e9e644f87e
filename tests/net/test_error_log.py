"""What goes wrong in a server, as lines of a log: without content, and few."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from aiosollol.core.redaction import summary
from aiosollol.errors import (
    BadRequest,
    ConnectionLost,
    InvalidInput,
    NodeError,
    NodeTimeout,
    NodeUnreachable,
    NoNodeAvailable,
    ProtocolError,
    RunnerFailed,
    StreamCutOff,
)
from aiosollol.net.error_log import (
    INTERVAL,
    ErrorLog,
    loop_errors,
    origin_of,
)

SECRET = "my secret prompt"


class Clock:
    """Calls that are due later, made when time passes."""

    def __init__(self) -> None:
        self.due: list[Call] = []

    def later(self, seconds: float, call: Callable[[], None]) -> Call:
        self.due.append(Call(self, seconds, call))
        return self.due[-1]

    def pass_interval(self) -> None:
        due, self.due = self.due, []
        for each in due:
            assert each.seconds == INTERVAL
            each.call()


class Call:
    def __init__(self, clock: Clock, seconds: float, call: Callable[[], None]) -> None:
        self.clock, self.seconds, self.call = clock, seconds, call

    def cancel(self) -> None:
        self.clock.due.remove(self)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def errors(clock: Clock) -> ErrorLog:
    return ErrorLog("gateway", later=clock.later)


def test_the_first_is_written_at_once_and_the_others_are_counted(
    errors: ErrorLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        errors.write("malformed", f"10.0.0.{number % 250}")
    assert caplog.messages == ["gateway: malformed, from 10.0.0.0"]
    clock.pass_interval()
    summed = "gateway: malformed: 999 more within 60 s, the last from 10.0.0.249"
    assert caplog.messages[1:] == [summed]
    errors.write("malformed", "10.0.0.7")  # the flood goes on: still one line a minute
    assert len(caplog.messages) == 2
    clock.pass_interval()
    assert caplog.messages[2:] == ["gateway: malformed: 1 more within 60 s, the last from 10.0.0.7"]
    clock.pass_interval()
    assert len(caplog.messages) == 3
    assert clock.due == []
    errors.write("malformed", "10.0.0.8")  # after a minute of peace, at once
    assert caplog.messages[3:] == ["gateway: malformed, from 10.0.0.8"]


def test_kinds_are_counted_apart(
    errors: ErrorLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    errors.write("one")
    errors.write("two", level=logging.ERROR)
    errors.write("two", level=logging.ERROR)
    clock.pass_interval()
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("WARNING", "gateway: one"),
        ("ERROR", "gateway: two"),
        ("ERROR", "gateway: two: 1 more within 60 s"),
    ]


def test_closing_writes_what_was_counted(
    errors: ErrorLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for what in ("one", "two", "two"):
        errors.write(what)
    errors.close()
    errors.close()
    assert caplog.messages[2:] == ["gateway: two: 1 more within 60 s"]
    assert clock.due == []


def test_kinds_are_bounded(
    errors: ErrorLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        errors.write(f"kind {number}")
    assert len(caplog.messages) == 65
    assert len(clock.due) == 65
    clock.pass_interval()
    assert caplog.messages[65:] == ["gateway: errors of other kinds: 935 more within 60 s"]


def test_a_loop_that_is_closed_has_no_later(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    errors = ErrorLog("event loop", later=loop.call_later)
    loop.close()
    errors.write("one")
    errors.write("one")
    assert caplog.messages == ["event loop: one"] * 2


# Without content.


def _fail(text: str) -> None:
    raise ValueError(f"cannot read {text}")


def _fail_again(text: str) -> None:
    try:
        _fail(text)
    except ValueError as error:
        raise KeyError(text) from error


def caught(call: Callable[[str], None]) -> BaseException:
    try:
        call(SECRET)
    except Exception as error:
        return error
    raise AssertionError


def test_an_exception_is_told_by_its_place() -> None:
    shown = origin_of(caught(_fail_again))
    first, second = shown.split("; caused by ")
    assert first.startswith("KeyError at net/test_error_log.py:")
    assert " in _fail_again, net/test_error_log.py:" in first
    assert second.startswith("ValueError at net/test_error_log.py:")
    assert " in _fail, net/test_error_log.py:" in second
    assert SECRET not in shown


def test_exceptions_of_all_shapes_have_an_origin() -> None:
    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)
        raise ValueError(SECRET)

    group = ExceptionGroup(SECRET, [ExceptionGroup(SECRET, [caught(_fail)])])  # type: ignore[list-item]
    noted = caught(_fail)
    noted.add_note(SECRET)
    circle = caught(_fail)
    circle.__cause__ = circle
    deepest = caught(lambda text: deep(50))
    for error in (group, noted, circle, deepest, KeyError(SECRET)):
        shown = origin_of(error)
        assert SECRET not in shown
        assert len(shown) < 1000
        assert "\n" not in shown
    assert origin_of(group).startswith("ValueError at ")
    assert origin_of(KeyError(SECRET)) == "KeyError"


CONTEXTS: list[tuple[dict[str, Any], str]] = [
    ({"message": "Task exception was never retrieved"}, "Task exception was never retrieved"),
    ({"message": f"Exception in callback feed(b'{SECRET}')"}, "Exception in callback feed"),
    (
        {"message": "Fatal error: protocol.data_received() call failed.", "protocol": SECRET},
        "Fatal error: protocol.data_received",
    ),
    ({"future": SECRET}, ""),
]


@pytest.mark.parametrize(("context", "said"), CONTEXTS)
@pytest.mark.parametrize("has_error", [True, False])
def test_an_error_of_the_loop_has_no_content(
    context: dict[str, Any],
    said: str,
    has_error: bool,
    errors: ErrorLog,
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.new_event_loop()
    try:
        loop.set_exception_handler(errors.on_loop_error)
        more = {"exception": caught(_fail), "handle": SECRET} if has_error else {}
        loop.call_exception_handler({**context, **more})
    finally:
        loop.close()
    (record,) = caplog.records
    assert record.name == "aiosollol"  # not asyncio's
    assert record.getMessage().startswith(f"gateway: {said}")
    assert ("ValueError at " in record.getMessage()) == has_error
    assert SECRET not in caplog.text


@pytest.mark.anyio
async def test_the_errors_of_a_loop_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    with loop_errors("node"):
        for _ in range(3):
            loop.call_soon(_fail, SECRET)
        while len(caplog.messages) < 1:
            await asyncio.sleep(0)
    assert loop.get_exception_handler() is before
    first, last = caplog.messages
    assert first.startswith("node: Exception in callback _fail: ValueError at ")
    assert last == f"{first}: 2 more within 60 s"


SUMMARIES: list[tuple[BaseException, str]] = [
    (StreamCutOff("gpu", f"answered {SECRET}", delivered=3), "gpu: StreamCutOff after 3 parts"),
    (RunnerFailed("gpu", 500, SECRET), "gpu: RunnerFailed (status 500)"),
    (BadRequest("gpu", 400, SECRET), "gpu: BadRequest (status 400)"),
    (ProtocolError("gpu", f"answered {SECRET!r}, which is not JSON"), "gpu: ProtocolError"),
    (NodeUnreachable("gpu", "connection refused"), "NodeUnreachable: gpu: connection refused"),
    (NodeTimeout("gpu", "no answer in 5 s"), "NodeTimeout: gpu: no answer in 5 s"),
    (ConnectionLost("gpu", "it ended"), "ConnectionLost: gpu: it ended"),
    (NodeError("gpu", "it ended"), "NodeError: gpu: it ended"),
    (
        NoNodeAvailable("all failed", {"gpu": SECRET}, [RunnerFailed("gpu", 500, SECRET)] * 3),
        "NoNodeAvailable: all failed; gpu: RunnerFailed (status 500)",
    ),
    (InvalidInput(f"not {SECRET!r}"), "InvalidInput"),
    (ValueError(SECRET), "ValueError"),
]


@pytest.mark.parametrize(("error", "said"), SUMMARIES)
def test_the_summary_of_an_error_has_no_content(error: BaseException, said: str) -> None:
    assert summary(error) == said
