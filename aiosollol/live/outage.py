"""Live requests of one model while it fails on every node: who asks again, and when."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable

import anyio

from aiosollol.core.model_names import full_name
from aiosollol.core.routing.retry import backoff


class Outage:
    """The requests for one model that failed, until the last of them ends.

    If every node failed them they ask again one at a time, in order of arrival, so that a node that
    comes back is not met by all at once. The pauses grow while none is answered; the first answer
    ends the wait of all.

    answers: number of answers by node, since this object was made.
    users: number of requests that refer to it.
    """

    def __init__(self, rng: random.Random) -> None:
        self.answers: Counter[str] = Counter()
        self.users = 0
        self._rng = rng
        self._turn = anyio.Lock()
        self._answered = 0
        self._pauses = 0

    def answered(self, node: str) -> None:
        """Record that `node` answered a request for the model."""
        self.answers[node] += 1
        self._answered += 1
        self._pauses = 0

    async def wait(
        self, until: float, pause: Callable[[float], Awaitable[None]], *, least: float = 0.0
    ) -> None:
        """Wait until it is this request's turn to ask again, a node has answered, or `until`.

        pause: sleeps, and raises PoolClosed if the pool is closed meanwhile.
        least: seconds that the nodes asked not to be asked for.
        """
        seen = self._answered
        with anyio.CancelScope(deadline=until):
            async with self._turn:
                if self._answered == seen:
                    seconds = backoff(self._pauses, self._rng)
                    self._pauses += 1
                    await pause(max(seconds, least))


class Outages:
    """The outages of all models. rng: for the jitter of pauses.

    by_model: the outages, by full name.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.by_model: dict[str, Outage] = {}

    def find(self, model: str) -> Outage | None:
        """The outage that requests for `model` are in, if there is one."""
        return self.by_model.get(full_name(model)) if self.by_model else None

    def enter(self, model: str) -> Outage:
        """Refer to the outage of `model`; begins one if there is none. Pair with `leave`."""
        outage = self.by_model.setdefault(full_name(model), Outage(self._rng))
        outage.users += 1
        return outage

    def leave(self, model: str, outage: Outage) -> None:
        """End a reference. The last one ends the outage."""
        outage.users -= 1
        if not outage.users:
            del self.by_model[full_name(model)]

    def answered(self, model: str, node: str) -> None:
        """Record that `node` answered a request for `model`."""
        outage = self.find(model)
        if outage is not None:
            outage.answered(node)
