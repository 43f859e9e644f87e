"""`Signals`: what the system tells a server: end, end at once, read your settings again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from types import TracebackType

RELOAD = getattr(signal, "SIGHUP", None)


class Signals:
    """SIGTERM and SIGINT set `stop`, a second one `hurry`; SIGHUP calls `on_reload`.

    Use it with ``with``, in the event loop's thread. number: the signal that came first.
    on_signal: told of each signal, for whoever passes them on.
    """

    def __init__(
        self,
        on_reload: Callable[[], None],
        on_signal: Callable[[signal.Signals], None] | None = None,
    ) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self.number: signal.Signals | None = None
        self._on_reload = on_reload
        self._on_signal = on_signal
        self._watched: list[int] = []

    def __enter__(self) -> Signals:
        if sys.platform != "win32":
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                # Threads other than the main one may not set them; then others tell us to end.
                with contextlib.suppress(RuntimeError, ValueError):
                    loop.add_signal_handler(number, self.receive, number)
                    self._watched.append(number)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in self._watched:
            loop.remove_signal_handler(number)
        self._watched.clear()

    def receive(self, number: signal.Signals) -> None:
        """A signal came."""
        if self._on_signal is not None:
            self._on_signal(number)
        if number == RELOAD:
            self._on_reload()
        elif self.stop.is_set():
            self.hurry.set()
        else:
            self.number = number
            self.stop.set()

    def end(self) -> None:
        """As if SIGTERM had come: whoever started this process has gone."""
        self.receive(signal.SIGTERM)
