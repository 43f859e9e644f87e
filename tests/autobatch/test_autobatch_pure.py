"""What a queue decides: when a batch begins and of what, what a failure means, what JSON says."""

from __future__ import annotations

import json
import math
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.autobatch.jobs import Document, JobStatus, QueueStatus, judge, outcome
from aiosollol.autobatch.pacing import (
    DOCUMENT_BACKOFF,
    LOOK_SECONDS,
    NODE_BACKOFF,
    BatchPacing,
    Line,
    Rules,
    Turn,
    delay,
    retry_after,
    smoothed_rate,
)
from aiosollol.core.embeddings import Embeddings
from aiosollol.errors import (
    BadRequest,
    InvalidInput,
    ModelMissing,
    ModelNotFound,
    NodeTimeout,
    NodeUnreachable,
    NoNodeAvailable,
    PoolClosed,
    PoolSaturated,
    ProtocolError,
    RequestFailed,
    RunnerFailed,
    ServerBusy,
    SollolError,
)

RULES = Rules(interval=60.0, min_batch_size=10, max_batch_size=100)


def idle(_: str) -> bool:
    return True


def busy(_: str) -> bool:
    return False


# Rules.


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"interval": -1}, "interval must be a number of seconds, not -1"),
        ({"interval": math.nan}, "interval must be a number of seconds, not nan"),
        ({"interval": "60"}, "interval must be a number of seconds, not '60'"),
        ({"keep_results": math.inf}, "keep_results must be a number of seconds, not inf"),
        ({"keep_results": True}, "keep_results must be a number of seconds, not True"),
        ({"min_batch_size": 0}, "min_batch_size must be a whole number of at least 1, not 0"),
        ({"max_batch_size": 1.5}, "max_batch_size must be a whole number of at least 1, not 1.5"),
        ({"max_documents": False}, "max_documents must be a whole number of at least 1, not False"),
        ({"max_bytes": -1}, "max_bytes must be a whole number of at least 1, not -1"),
        ({"max_attempts": 0}, "max_attempts must be a whole number of at least 1, not 0"),
        (
            {"min_batch_size": 101},
            "min_batch_size is 101, more than max_batch_size, 100",
        ),
    ],
)
def test_rules_that_cannot_be(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Rules(**given)
    assert str(caught.value) == words


# When a batch begins.


@pytest.mark.parametrize(
    ("ready", "is_idle", "after", "begins"),
    [
        (100, idle, 0.0, True),
        (10, idle, 0.0, True),
        (9, idle, 0.0, False),  # fewer than make up a batch
        (9, idle, 59.0, False),
        (9, idle, 60.0, True),
        (1, idle, 60.0, True),
        (100, busy, 0.0, False),
        (100, busy, 59.0, False),
        (1, busy, 60.0, True),
    ],
)
def test_when_a_batch_begins(ready: int, is_idle: Any, after: float, begins: bool) -> None:
    pace = BatchPacing()
    lines = [Line(1, "m", ready)]
    pace.choose(lines, 1000.0, RULES, busy)
    turn = pace.choose(lines, 1000.0 + after, RULES, is_idle)
    assert turn == (Turn(1) if begins else Turn(None, LOOK_SECONDS))


def test_a_busy_pool_gets_one_batch_per_interval() -> None:
    pace = BatchPacing()
    lines = [Line(1, "m", 100)]
    began = [
        now for now in range(300) if pace.choose(lines, float(now), RULES, busy).group is not None
    ]
    assert began == [60, 120, 180, 240]


def test_documents_that_have_gone_do_not_shorten_the_wait_of_others() -> None:
    pace = BatchPacing()
    pace.choose([Line(1, "m", 1)], 0.0, RULES, busy)
    pace.choose([], 50.0, RULES, busy)
    assert pace.choose([Line(1, "m", 1)], 70.0, RULES, busy).group is None


def test_nothing_ready_is_nothing_to_do() -> None:
    assert BatchPacing().choose([Line(1, "m", 0)], 0.0, RULES, idle) == Turn(None, LOOK_SECONDS)
    assert BatchPacing().choose([], 0.0, RULES, idle) == Turn(None, LOOK_SECONDS)


def test_a_wait_ends_when_the_interval_does() -> None:
    pace = BatchPacing()
    pace.choose([Line(1, "m", 1)], 0.0, RULES, busy)
    assert pace.choose([Line(1, "m", 1)], 59.75, RULES, busy) == Turn(None, 0.25)


def test_a_group_is_gone_on_with_and_then_the_others_have_their_turn() -> None:
    pace = BatchPacing()
    lines = [Line(group, "m", 100) for group in (3, 5, 8)]
    chosen = [pace.choose(lines, float(now), RULES, idle).group for now in range(0, 300, 20)]
    assert chosen == [3, 3, 3, 5, 5, 5, 8, 8, 8, 3, 3, 3, 5, 5, 5]


def test_a_group_that_failed_rests_and_others_do_not() -> None:
    pace = BatchPacing()
    both = [Line(1, "m", 100), Line(2, "n", 100)]
    assert pace.choose(both, 0.0, RULES, idle).group == 1
    assert pace.failed(1, 0.0, NODE_BACKOFF) == 1
    assert pace.choose(both, 0.5, RULES, idle).group == 2
    assert pace.choose(both[:1], 0.75, RULES, idle) == Turn(None, 0.25)
    assert pace.choose(both[:1], 1.0, RULES, idle).group == 1
    assert pace.failed(1, 1.0, NODE_BACKOFF) == 2
    assert pace.choose(both[:1], 2.9, RULES, idle).group is None
    pace.succeeded(1)
    assert pace.choose(both[:1], 2.9, RULES, idle).group == 1


def test_failures_of_another_kind_are_counted_anew() -> None:
    pace = BatchPacing()
    assert [pace.failed(1, 0.0, NODE_BACKOFF) for _ in range(3)] == [1, 2, 3]
    assert pace.failed(1, 0.0, DOCUMENT_BACKOFF) == 1


@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 100.0),
            st.booleans(),
            st.lists(st.tuples(st.integers(1, 4), st.integers(0, 100)), max_size=4),
        ),
        max_size=30,
    )
)
def test_who_waits_never_waits_longer_than_it_has_to(
    steps: list[tuple[float, bool, list[tuple[int, int]]]],
) -> None:
    """Whatever happens: a batch is of a group that has documents, and no wait is endless."""
    pace, now = BatchPacing(), 0.0
    for seconds, is_idle, groups in steps:
        now += seconds
        lines = [Line(group, "m", ready) for group, ready in dict(groups).items()]
        turn = pace.choose(lines, now, RULES, idle if is_idle else busy)
        ready = {line.group: line.ready for line in lines if line.ready}
        if turn.group is None:
            assert 0.0 <= turn.seconds <= LOOK_SECONDS
            assert not is_idle or all(count < RULES.min_batch_size for count in ready.values())
        else:
            assert turn.group in ready


# How long to wait, and how fast it goes.


def test_delays_double_up_to_a_limit() -> None:
    assert [delay(n, NODE_BACKOFF) for n in (1, 2, 3, 5, 6, 7, 9999)] == [
        *(1.0, 2.0, 4.0, 16.0, 30.0, 30.0, 30.0)
    ]


@pytest.mark.parametrize(
    ("excess", "rate", "seconds"),
    [(100, 50.0, 2.0), (1, 1000.0, 1.0), (10**9, 1.0, 3600.0), (5, 0.0, 60.0)],
)
def test_when_there_is_room_again(excess: int, rate: float, seconds: float) -> None:
    assert retry_after(excess, rate, 60.0) == seconds


def test_the_rate_follows_what_happens() -> None:
    assert smoothed_rate(0.0, 100, 2.0) == 50.0
    assert smoothed_rate(50.0, 100, 1.0) == 60.0
    assert smoothed_rate(50.0, 0, 1.0) == smoothed_rate(50.0, 5, 0.0) == 50.0


# What a failure means.


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (InvalidInput("no text"), "fail"),
        (BadRequest("a", 400, "too long"), "fail"),
        (RunnerFailed("a", 500, "NaN"), "count"),
        (NodeTimeout("a", "late"), "count"),
        (ProtocolError("a", "HTML"), "count"),
        (RequestFailed("words"), "count"),
        (SollolError("words"), "count"),
        (TypeError("a mistake of ours"), "count"),
        (ServerBusy("a", 503, "busy"), "wait"),
        (NodeUnreachable("a", "refused"), "wait"),
        (ModelMissing("a", 404, "no such model"), "wait"),
        (NoNodeAvailable("nobody", {}), "wait"),
        (PoolClosed("closed"), "wait"),
        (PoolSaturated("full"), "wait"),
        (ModelNotFound("m", {"a": []}, {"b": "refused"}), "wait"),  # b may have it
        (ModelNotFound("m", {"a": []}), "missing"),
    ],
)
def test_what_a_failure_means(error: Exception, verdict: str) -> None:
    assert judge(error) == verdict


DOCUMENTS = [Document(key, f"text {key}", 0, 6) for key in range(4)]


def test_the_outcome_of_a_batch() -> None:
    documents = [*DOCUMENTS, Document(4, "again and again", 2, 15)]
    crashed = RunnerFailed("a", 500, "NaN")
    embeddings = Embeddings(
        array("f", range(5)),
        1,
        errors={
            1: BadRequest("a", 400, "bad"),
            2: crashed,
            3: ServerBusy("a", 503, "x"),
            4: crashed,
        },
    )
    found = outcome(documents, embeddings, 1000.0, max_attempts=3)
    assert [(document.key, list(vector)) for document, vector in found.done] == [(0, [0.0])]
    assert [(each.document.key, each.error) for each in found.failed] == [
        (1, "BadRequest: a: bad (status 400)"),
        (4, "RunnerFailed: a: NaN (status 500) (tried 3 times)"),
    ]
    (again,) = found.again
    assert (again.document.key, again.document.attempts, again.due_at) == (2, 1, 1005.0)
    assert found.wait == "ServerBusy: a: x (status 503)"
    assert not found.missing


def test_what_a_pool_raises_is_of_every_document() -> None:
    waits = outcome(DOCUMENTS, NoNodeAvailable("nobody", {}), 0.0, 5)
    assert (waits.wait, waits.failed, waits.again) == ("NoNodeAvailable: nobody", [], [])
    missing = outcome(DOCUMENTS, ModelNotFound("m", {"a": []}), 0.0, 5)
    assert missing.missing.startswith("ModelNotFound: no node has the model 'm'")
    fails = outcome(DOCUMENTS, InvalidInput("no"), 0.0, 5)
    assert [each.document for each in fails.failed] == DOCUMENTS
    counts = outcome(DOCUMENTS, TypeError("no"), 0.0, 5)
    assert [each.document.key for each in counts.again] == [0, 1, 2, 3]


# What JSON says.


@pytest.mark.parametrize(
    ("given", "state"),
    [
        ({"queued": 3}, "pending"),
        ({"queued": 3, "started_at": 1.0}, "running"),
        ({"queued": 1, "completed": 2, "started_at": 1.0}, "running"),
        ({"completed": 3, "started_at": 1.0}, "completed"),
        ({"completed": 1, "failed": 2, "started_at": 1.0}, "completed"),
        ({"failed": 3, "started_at": 1.0}, "failed"),
        ({"completed": 1, "is_cancelled": True}, "cancelled"),
    ],
)
def test_states(given: dict[str, Any], state: str) -> None:
    status = JobStatus(job_id="j", model="m", total=3, created_at=0.0, **given)
    assert status.state == state
    assert status.is_over == (state not in ("pending", "running"))


def test_a_job_as_json() -> None:
    status = JobStatus(
        job_id="j",
        model="m",
        metadata={"source": "wiki", "model": "mine"},
        total=8,
        queued=3,
        completed=4,
        failed=1,
        created_at=0.0,
        started_at=10.0,
        now=20.0,
        eta=6.0,
    )
    shown = status.as_dict()
    assert json.loads(json.dumps(shown)) == shown
    assert shown == {
        "job_id": "j",
        "job_type": "embed",
        "status": "running",
        "created_at": "1970-01-01T00:00:00+00:00",
        "started_at": "1970-01-01T00:00:10+00:00",
        "completed_at": None,
        "progress": {
            "total_items": 8,
            "completed_items": 4,
            "failed_items": 1,
            "queued_items": 3,
            "percent": 50.0,
        },
        "duration_seconds": 10.0,
        "documents_per_second": 0.5,
        "eta_seconds": 6.0,
        "expires_at": None,
        "metadata": {"source": "wiki", "model": "m"},
    }


def test_a_job_that_was_not_begun_has_no_speed() -> None:
    status = JobStatus(job_id="j", model="m", total=1, queued=1, created_at=0.0, now=5.0)
    assert (status.seconds, status.rate) == (None, None)


def test_a_queue_as_json() -> None:
    job = JobStatus(job_id="j", model="m", total=1, queued=1, created_at=0.0)
    status = QueueStatus(
        jobs=[job],
        job_count=7,
        job_total=9,
        active=1,
        pending=2,
        queued=30,
        queued_bytes=500,
        max_documents=100,
        max_bytes=1000,
        keep_results=3600.0,
        rate=2.0,
        worker=4711,
        problem="words",
    )
    shown = status.as_dict()
    assert json.loads(json.dumps(shown)) == shown
    assert shown.pop("jobs") == [job.as_dict()]
    assert shown == {
        "total": 7,
        "total_jobs_created": 9,
        "active_jobs": 1,
        "pending_jobs": 2,
        "stored_jobs": 7,
        "job_ttl_seconds": 3600.0,
        "queued_documents": 30,
        "queued_bytes": 500,
        "max_documents": 100,
        "max_bytes": 1000,
        "documents_per_second": 2.0,
        "eta_seconds": 15.0,
        "worker": {"pid": 4711, "is_here": False, "problem": "words"},
    }
