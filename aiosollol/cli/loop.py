"""The event loop of a command, and how signals end it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 3  # signals until a clean-up that hangs is given up


def run(command: Coroutine[Any, Any, T]) -> T:
    """What `command` returns, run to its end on a loop of its own (uvloop where installed).

    Ctrl-C, SIGTERM and a closed terminal cancel the command, so that it can clean up. Then the
    program ends with 128 + the number of the signal, as a shell reports it.
    """
    received: list[signal.Signals] = []
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_cancellable(command, received))
    except KeyboardInterrupt:  # on Windows, where a loop has no signal handlers
        raise SystemExit(128 + signal.SIGINT) from None
    except asyncio.CancelledError:
        if not received:
            raise
        raise SystemExit(128 + received[0]) from None


async def _cancellable(command: Coroutine[Any, Any, T], received: list[signal.Signals]) -> T:
    task = asyncio.current_task()
    assert task is not None

    def stop(number: signal.Signals) -> None:
        received.append(number)
        if len(received) == 1:
            task.cancel()
        # A second one is impatience: cancelled again, the clean-up would leave things open.
        elif len(received) == PATIENCE:
            os._exit(128 + number)

    if sys.platform != "win32":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
    return await command


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
