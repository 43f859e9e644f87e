"""The list of models of an API key holds for all that a request may name, show or use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from keyed_gateway import MODEL, NO_MODEL, OTHER_MODEL, VERBS, gateways, ring

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("asker", "body", "status"),
    [
        ("cal", {"model": MODEL}, 202),
        ("cal", {"model": f"{MODEL}:latest"}, 202),
        ("cal", {"model": OTHER_MODEL}, 403),
        ("cal", {}, 403),
        ("cal", {"model": ""}, 403),
        ("cal", {"model": None}, 403),
        # Without "model" the gateway's default is used, whatever model another field names.
        ("cal", {"name": MODEL}, 403),
        ("cal", {"source": MODEL}, 403),
        ("cal", {"MODEL": MODEL}, 403),
        ("cal", {"model": "", "name": MODEL}, 403),
        ("cal", b'{"docs": ["x"], "model": "other-embed", "model": "all-minilm"}', 202),
        ("cal", b'{"docs": ["x"], "model": "all-minilm", "model": "other-embed"}', 403),
        ("dan", {"model": OTHER_MODEL}, 202),
        ("dan", {"name": OTHER_MODEL}, 202),
        ("dan", {"model": MODEL}, 403),
        ("eve", {"model": MODEL}, 403),
        ("ann", {}, 202),
        ("open", {}, 202),
    ],
)
async def test_models_of_a_key_hold_for_its_jobs(
    tmp_path: Path, asker: str, body: Any, status: int
) -> None:
    async with gateways(tmp_path) as both:
        given = body if isinstance(body, bytes) else {"docs": ["x"], **body}
        answer = await both.ask(asker, "POST", "/api/embed/batch", given)
        assert answer.status == status, answer.body
        jobs = (await both.queue.status()).jobs
        assert len(jobs) == (status == 202)
        if asker not in ("ann", "open"):
            key = next(key for key in both.guard.keys if key.name == asker)
            assert all(key.may_use(job.model) for job in jobs)


async def test_a_model_that_was_taken_from_a_key(tmp_path: Path) -> None:
    """It keeps its jobs and may cancel them, but not use the model."""
    async with gateways(tmp_path) as both:
        job = await both.made("ann")
        old = next(key for key in both.guard.keys if key.name == "ann")
        line = f"ann sha256:{old.digest.hex()} models={OTHER_MODEL}"
        both.guard.keys = ring({"ann": line})
        for verb, (method, path, headers) in VERBS.items():
            answer = await both.ask("ann", method, path.format(job=job), **headers)
            assert answer.status == NO_MODEL[verb], verb
            if answer.status == 403:
                assert answer.json == {"error": f"this key may not use the model {MODEL!r}"}
