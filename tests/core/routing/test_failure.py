"""What a failure means: a table of every error of a node."""

from __future__ import annotations

import pytest

from aiosollol import errors
from aiosollol.core.routing.retry import Failure, classify
from aiosollol.errors import NodeError

MEANINGS = [
    (errors.BadRequest("n", 400, "the input length exceeds the context length"), Failure.INPUT),
    (errors.TextTooLong("n", 400, "the input length exceeds the context length"), Failure.INPUT),
    (errors.ModelMissing("n", 404, "model 'x' not found"), Failure.MODEL),
    (errors.ServerBusy("n", 503, "server busy"), Failure.BUSY),
    (errors.NodeUnavailable("n", 502, "answered HTML"), Failure.ANSWER),
    (errors.NodeUnreachable("n", "connection refused"), Failure.NODE),
    (errors.ConnectionLost("n", "reset by peer"), Failure.ANSWER),
    (errors.NodeTimeout("n", "no answer in 5 s"), Failure.ANSWER),
    (errors.RunnerFailed("n", 500, "out of memory"), Failure.ANSWER),
    (errors.ResponseError("n", 403, "forbidden"), Failure.ANSWER),
    (errors.ProtocolError("n", "answered HTML"), Failure.ANSWER),
    (errors.StreamCutOff("n", "ended early"), Failure.ANSWER),
    (errors.NodeError("n", "something new"), Failure.ANSWER),
]


@pytest.mark.parametrize(
    ("error", "failure"), MEANINGS, ids=[type(e).__name__ for e, _ in MEANINGS]
)
def test_what_a_failure_means(error: NodeError, failure: Failure) -> None:
    assert classify(error) is failure


def test_the_table_knows_every_error_of_a_node() -> None:
    def below(kind: type[NodeError]) -> set[type[NodeError]]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    mine = {kind for kind in below(NodeError) if kind.__module__ == errors.__name__}
    assert {type(error) for error, _ in MEANINGS} == mine
