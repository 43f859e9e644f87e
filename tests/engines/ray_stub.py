"""What the tests of the link have in the place of a sidecar: the same frames, and no Ray."""

from __future__ import annotations

import sys
import time
from typing import Any

from aiosollol.engines.ray import protocol


def main() -> None:
    cancelled = 0

    def answer(number: int, outcome: str, value: Any) -> None:
        sys.stdout.buffer.write(protocol.pack((number, outcome, value)))
        sys.stdout.buffer.flush()

    while True:
        try:
            number, name, arguments = protocol.read(sys.stdin.buffer)
        except EOFError:
            return
        if name == "join":
            (address,) = arguments
            if address == "refused":
                answer(number, "refused", "there is no cluster; start one")
            elif address == "dies":
                sys.exit("first words\nlast words")
            elif address == "token":
                sys.exit("RPC error: InvalidAuthToken: wrong")
            elif address == "hangs":
                time.sleep(1000.0)
            else:
                told = {"address": address, "is_own": False, "dashboard": None, "version": "2"}
                answer(number, "done", told)
        elif name == "echo":
            answer(number, "done", arguments[0])
        elif name == "die":
            sys.exit("first words\nlast words")
        elif name == "fail":
            answer(number, "failed", "failed: RuntimeError: of Ray")
        elif name == "refuse":
            answer(number, "refused", "is not for you")
        elif name == "cancel":
            cancelled += 1
        elif name == "cancelled":
            answer(number, "done", cancelled)


if __name__ == "__main__":
    main()
