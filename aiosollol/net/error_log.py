"""`ErrorLog`: logs a server's errors, rate limited and without content.

A malformed request may hold a key or a prompt anywhere, and so may an exception's message. Neither
is logged, at any level.
"""

from __future__ import annotations

import asyncio
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from aiosollol.errors import first_of

log = logging.getLogger("aiosollol")

INTERVAL = 60.0
"""Seconds for which a kind of error is only counted after it was logged."""

_MOST_KINDS = 64
_MOST_FRAMES = 6
_MOST_CAUSES = 4
_OTHER = "errors of other kinds"


class Timer(Protocol):
    """A scheduled call, such as `asyncio.TimerHandle`."""

    def cancel(self) -> None:
        """Cancel the call."""
        ...


Later = Callable[[float, Callable[[], None]], Timer]


class ErrorLog:
    """Logs the errors of one server: the first of a kind at once, then one line a minute.

    name: of the server; each line begins with it.
    later: schedules a call; by default the running loop's `call_later`.

    `close` it with the server.
    """

    def __init__(self, name: str, *, later: Later | None = None) -> None:
        self._name = name
        self._later = later
        self._kinds: dict[str, _Kind] = {}

    def write(self, what: str, peer: str = "", *, level: int = logging.WARNING) -> None:
        """Log an error. what: its kind, in our own words; peer: the address it came from."""
        if what not in self._kinds and len(self._kinds) >= _MOST_KINDS:
            what = _OTHER
        kind = self._kinds.get(what)
        if kind is not None:
            kind.more += 1
            kind.peer = peer
            return
        log.log(level, "%s: %s%s", self._name, what, f", from {peer}" if peer else "")
        self._watch(what, level)

    def write_bug(self, error: BaseException, peer: str = "", *, what: str = "a request") -> None:
        """Log an exception that is a bug: its type and traceback, without its message."""
        self.write(f"{what} failed, which is a bug: {origin_of(error)}", peer, level=logging.ERROR)

    def on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """For `asyncio.loop.set_exception_handler`: what asyncio would log, without content."""
        # After a bracket, asyncio gives the arguments of a callback.
        what = str(context.get("message", "")).partition("(")[0].strip()
        error = context.get("exception")
        where = f": {origin_of(error)}" if error is not None else ""
        self.write(f"{what}{where}", level=logging.ERROR)

    def close(self) -> None:
        """Log what was only counted so far."""
        for what, kind in list(self._kinds.items()):
            kind.timer.cancel()
            self._sum_up(what, is_last=True)

    def _watch(self, what: str, level: int) -> None:
        later = self._later or asyncio.get_running_loop().call_later
        try:
            timer = later(INTERVAL, partial(self._sum_up, what))
        except RuntimeError:  # the loop is closed: this was one of the last lines
            return
        self._kinds[what] = _Kind(level, timer)

    def _sum_up(self, what: str, *, is_last: bool = False) -> None:
        kind = self._kinds.pop(what)
        if not kind.more:
            return
        last = f", the last from {kind.peer}" if kind.peer else ""
        within = f"within {INTERVAL:g} s"
        log.log(kind.level, "%s: %s: %d more %s%s", self._name, what, kind.more, within, last)
        if not is_last:
            self._watch(what, kind.level)


@contextmanager
def loop_errors(name: str) -> Iterator[None]:
    """Log errors of the running loop through an `ErrorLog` called `name` while the block runs.

    For programs that own their event loop.
    """
    loop = asyncio.get_running_loop()
    errors, before = ErrorLog(name), loop.get_exception_handler()
    loop.set_exception_handler(errors.on_loop_error)
    try:
        yield
    finally:
        loop.set_exception_handler(before)
        errors.close()


class _Kind:
    """A kind of error that was logged within the interval. more: how many came since."""

    __slots__ = ("level", "more", "peer", "timer")

    def __init__(self, level: int, timer: Timer) -> None:
        self.level = level
        self.timer = timer
        self.more = 0
        self.peer = ""


def origin_of(error: BaseException) -> str:
    """An exception's type and place: ``KeyError at gateway/app.py:12 in _serve, ...``.

    Innermost frames first, then the exceptions that caused it. The message is left out: it may
    quote a request.
    """
    shown = (_place_of(each) for each in _chain(error))
    return "; caused by ".join(shown)


def traceback_of(error: BaseException) -> str:
    """The traceback of an exception and its causes, without their messages."""
    parts = []
    for each in _chain(error):
        frames = traceback.StackSummary.extract(traceback.walk_tb(each.__traceback__))
        parts.append("".join([*frames.format(), type(each).__name__]))
    return "\ncaused by:\n".join(parts)


def _chain(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if found is None:
            return
        if isinstance(found, BaseExceptionGroup):
            found = first_of(found)
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def _place_of(error: BaseException) -> str:
    frames = [
        f"{_short(frame.f_code.co_filename)}:{line} in {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    place = ", ".join(frames[: -_MOST_FRAMES - 1 : -1])
    return f"{type(error).__name__} at {place}" if place else type(error).__name__


def _short(path: str) -> str:
    return "/".join(path.split(os.sep)[-2:])
