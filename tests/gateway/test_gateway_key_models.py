"""The list of models of an API key holds for all that a request may name, show or use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from keyed_gateway import MODEL, NO_MODEL, OTHER_MODEL, VERBS, gateways, ring, visible

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
        ("cal", b'{"docs": ["x"], "model": "other-embed", "model": "all-minilm"}', 403),
        ("cal", b'{"docs": ["x"], "model": "all-minilm", "model": "other-embed"}', 403),
        ("ann", b'{"docs": ["x"], "model": "all-minilm", "model": "other-embed"}', 202),
        ("dan", {}, 202),  # the default
        ("dan", {"model": ""}, 202),
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


async def test_a_key_sees_its_models_alone(tmp_path: Path) -> None:
    async with gateways(tmp_path) as both:
        for name in (MODEL, OTHER_MODEL):  # into memory
            await both.ask("ann", "POST", "/api/embed", {"model": name, "input": "x"})
        await both.keyed.pool.refresh()
        registry = both.keyed.pool._registry
        for node in registry:
            registry.trust(node, MODEL, is_right=False)
            registry.trust(node, OTHER_MODEL, is_right=False)
        shown = {
            asker: {
                path: (await both.ask(asker, "GET", path)).body.decode()
                for path in ("/api/tags", "/v1/models", "/api/ps", "/api/stats", "/api/health")
            }
            for asker in ("ann", "dan", "ops", "open")
        }
        for asker, answers in shown.items():
            for path, body in answers.items():
                json.loads(body)
                if path != "/api/health":
                    assert (MODEL in body) is (asker != "dan"), (asker, path)
                    assert OTHER_MODEL in body, (asker, path)
        assert "tiny-chat" in shown["dan"]["/api/tags"]
        for asker, models in {"ann": {MODEL, OTHER_MODEL}, "dan": {OTHER_MODEL}}.items():
            for each in json.loads(shown[asker]["/api/stats"])["node_performance"].values():
                assert {f"{model}:latest" for model in models} == set(each["distrusted_models"])
        hidden = await both.ask("dan", "GET", f"/v1/models/{MODEL}")
        unknown = await both.ask("dan", "GET", "/v1/models/all-minilx")
        absent = await both.ask("ann", "GET", "/v1/models/all-minilx")
        assert hidden.status == unknown.status == absent.status == 404
        assert hidden.body.replace(b"minilm", b"minilx") == unknown.body == absent.body
        assert visible(hidden) == visible(unknown)
        assert (await both.ask("dan", "GET", f"/v1/models/{OTHER_MODEL}")).status == 200
        show = [
            await both.ask("dan", "POST", "/api/show", {"model": name})
            for name in (MODEL, "all-minilx", OTHER_MODEL)
        ]
        assert [answer.status for answer in show] == [403, 403, 200]


@pytest.mark.parametrize(
    ("asker", "body", "status"),
    [
        ("dan", {"text": "x", "name": "tiny-chat"}, 200),
        ("dan", {"text": "x", "model": OTHER_MODEL}, 200),
        ("cal", {"text": "x", "name": MODEL}, 403),
        ("cal", {"text": "x", "model": "", "name": MODEL}, 403),
        ("cal", {"text": "x", "model": MODEL}, 200),
        ("ann", {"text": "x"}, 200),
    ],
)
async def test_a_text_in_the_originals_form_is_for_the_models_of_its_key(
    tmp_path: Path, asker: str, body: Any, status: int
) -> None:
    """Without "model" the gateway's default is used, whatever model another field names."""
    async with gateways(tmp_path) as both:
        assert (await both.ask(asker, "POST", "/api/embed", body)).status == status
