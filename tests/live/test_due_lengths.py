"""Each attempt of a hedged embedding is held to what its own node promises: in virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

import orjson
import pytest
from live_cluster import EMBED, MODEL, TALKER, cluster, vector, virtual_time

from aiosollol.errors import NoNodeAvailable
from aiosollol.live.calls import EmbedCall, TalkCall
from aiosollol.live.relay import RelayCall, read_talk
from aiosollol.testing import FakeTransport, Fault
from aiosollol.wire.ollama.chat import load_chat

RIGHT, WRONG, OTHER = EMBED.dim, EMBED.dim + 1, 2 * EMBED.dim


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


def promise(node: FakeTransport, length: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the node's list of models say that its vectors have `length` numbers, or nothing."""
    ask = node.request

    async def request(
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        most: int | None = None,
    ) -> bytes:
        answer = await ask(method, path, body, timeout=timeout, headers=headers)
        if path != "/api/tags":
            return answer
        listed = orjson.loads(answer)
        for model in listed["models"]:
            model["details"]["embedding_length"] = length
        return orjson.dumps(listed)

    monkeypatch.setattr(node, "request", request)


class Case(NamedTuple):
    """Two nodes: what each promises, what it answers, and which of them answers first."""

    promises: tuple[int | None, int | None]
    answers: tuple[int, int]
    first: int

    def expected(self) -> int | None:
        """The node whose answer is accepted, None if neither is."""
        order = (self.first, 1 - self.first)
        sound = [i for i in order if self.promises[i] in (None, self.answers[i])]
        return sound[0] if sound else None


CASES = [
    Case(promises, answers, first)
    for promises, answers, first in product(
        product((None, RIGHT, OTHER), repeat=2), product((RIGHT, WRONG), repeat=2), (0, 1)
    )
]


@pytest.mark.anyio
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_an_answer_has_the_length_that_its_own_node_promises(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = {"overhead": 0.01}
    nodes = {"a": {**pace, "priority": 0}, "b": {**pace, "priority": 1}}
    async with cluster(**nodes, strategy="priority", max_retries=1, hedge_rate=0.0) as made:
        await made.warm_up(times=3)
        for name, promised, answer in zip("ab", case.promises, case.answers, strict=True):
            promise(made[name], promised, monkeypatch)
            made[name].fault = Fault.WRONG_DIM if answer == WRONG else None
            await made.monitor.probe(name)
        # Asked of b too a second later, while a has yet to answer.
        made["a"].overhead = 20.0
        made["b"].overhead = 40.0 if case.first == 0 else 5.0
        before = [made[name].requests for name in nodes]
        winner = case.expected()
        if winner is None:
            with pytest.raises(NoNodeAvailable, match="numbers where"):
                await made.embed()
            return
        found = await made.embed()
        assert len(found) == 4 * case.answers[winner]
        if case.answers[winner] == RIGHT:
            assert found == vector()
        assert [made[name].requests - was for name, was in zip("ab", before, strict=True)] == [1, 1]


@pytest.mark.parametrize(
    "call",
    [
        EmbedCall(MODEL, ["a text"], b"", True, 1.0),
        TalkCall("/api/chat", "chat", TALKER, b"", load_chat, 1.0),
        RelayCall("/api/chat", "chat", TALKER, b"", read_talk, 1.0),
    ],
)
def test_what_several_attempts_share_cannot_change(call: Any) -> None:
    for name in ("model", "body", "dim", "timeout", "trace", "setbacks", "request"):
        with pytest.raises(AttributeError):
            setattr(call, name, None)
