"""A queued job belongs to the API key that submitted it: access by maker, asker and verb."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest
from gateway_cluster import MODELS
from keyed_gateway import (
    ALL,
    KEYS,
    MODEL,
    NO_MODEL,
    NOTHING,
    SECRET,
    VERBS,
    gateways,
    ring,
    visible,
)

from aiosollol.gateway.middleware.keys import KeyRing, keys_in_variable, new_key
from aiosollol.service import SOLLOL, SOLLOLConfig
from aiosollol.testing import FakeOllama

pytestmark = pytest.mark.anyio

EXPECTED = {
    # submitted before keys were switched on
    ("open", "open"): ALL,
    ("open", "ann"): NOTHING,
    ("open", "cal"): NOTHING,
    ("open", "env"): NOTHING,
    ("open", "ops"): ALL,
    ("open", "eve"): NO_MODEL,
    ("open", ""): dict.fromkeys(VERBS, 401),
    ("ann", "ann"): ALL,
    ("ann", "bob"): NOTHING,
    ("ann", "cal"): NOTHING,
    ("ann", "dan"): NOTHING,
    ("ann", "env"): NOTHING,
    ("ann", "ops"): ALL,
    ("ann", "eve"): NO_MODEL,
    ("ann", ""): dict.fromkeys(VERBS, 401),
    ("ann", "open"): ALL,  # keys were switched off later
    ("cal", "cal"): ALL,
    ("cal", "ann"): NOTHING,
    ("cal", "ops"): ALL,
    ("env", "env"): ALL,
    ("env", "ann"): NOTHING,
    ("env", "ops"): ALL,
    ("ops", "ops"): ALL,
    ("ops", "ann"): NOTHING,
    ("ops", "eve"): NO_MODEL,
}


@pytest.mark.parametrize(("maker", "asker"), EXPECTED)
async def test_access_by_maker_asker_and_verb(tmp_path: Path, maker: str, asker: str) -> None:
    async with gateways(tmp_path) as both:
        job = await both.made(maker)
        before = await both.queue.status(job)
        unknown = "0" * 8 + job[8:]
        found = {}
        for verb, (method, path, headers) in VERBS.items():
            answer = await both.ask(asker, method, path.format(job=job), **headers)
            found[verb] = answer.status
            if answer.status not in (404, 403):
                continue
            assert SECRET not in answer.body.decode()
            if answer.status == 404:
                other = await both.ask(asker, method, path.format(job=unknown), **headers)
                assert other.status == 404
                assert other.body.decode().replace(unknown, job) == answer.body.decode()
                assert visible(other) == visible(answer)
        assert found == EXPECTED[maker, asker]
        listed = await both.ask(asker, "GET", "/api/batch-status")
        if EXPECTED[maker, asker]["status"] == 200:
            assert [each["job_id"] for each in listed.json["jobs"]] == [job]
        else:
            assert not any(word in listed.body.decode() for word in (job, SECRET))
            after = await both.queue.status(job)
            assert (after.failed, after.is_cancelled) == (before.failed, False)


async def test_no_endpoint_shows_or_changes_the_job_of_another_key(
    tmp_path: Path,
) -> None:
    """Every registered route, so that one added later is covered."""
    async with gateways(tmp_path) as both:
        job = await both.made("ann")
        before = await both.queue.status(job)
        counts = []
        for route in both.app.router.routes():
            path = route.resource.canonical if route.resource is not None else ""
            filled = path.replace("{id}", job).replace("{name}", MODEL)
            body = {"model": MODEL, "docs": ["x"], "input": "x", "prompt": "", "messages": []}
            for query in ("", f"?job={job}&id={job}&all=1&owner=ann"):
                answer = await both.ask("bob", route.method, filled + query, body)
                assert SECRET.encode() not in answer.body, (route.method, path)
                counts.append(answer.status)
        assert {200, 202, 404} <= set(counts)
        after = await both.queue.status(job)
        assert (after.as_dict(), after.failed) == (before.as_dict(), 1)
        everything = await both.ask("bob", "GET", "/api/batch-status")
        assert everything.json["total"] == counts.count(202)
        assert everything.json["queued_documents"] <= counts.count(202)


async def test_each_key_has_a_list_of_its_own(tmp_path: Path) -> None:
    async with gateways(tmp_path) as both:
        makers = ("open", "ann", "cal", "env", "ops")
        jobs = {name: await both.made(name) for name in makers}
        for asker in (*makers, "bob", "eve"):
            listed = (await both.ask(asker, "GET", "/api/batch-status")).json
            seen = [job["job_id"] for job in listed["jobs"]]
            sees_all = asker in ("open", "ops", "eve")
            expected = [job for name, job in reversed(jobs.items()) if sees_all or name == asker]
            assert seen == expected
            assert (listed["total"], listed["total_jobs_created"]) == (len(seen), len(seen))
        owners = [job.get("owner", "") for job in listed["jobs"]]
        assert [owner[:4] for owner in owners] == ["ops", "env:", "cal", "ann", ""]


# Keys that change.


@pytest.mark.parametrize(
    ("change", "sees"),
    [
        ("nothing", True),
        ("a new key of the same name", True),
        ("more limits", True),
        ("another name", False),
        ("admin", True),
    ],
)
async def test_a_job_follows_the_name_of_its_key(tmp_path: Path, change: str, sees: bool) -> None:
    async with gateways(tmp_path) as both:
        job = await both.made("ann")
        old = next(key for key in both.guard.keys if key.name == "ann")
        line = f"ann sha256:{old.digest.hex()}"
        match change:
            case "a new key of the same name":
                made = new_key("ann")
                line, both.tokens["ann"] = made.line, made.token
            case "more limits":
                line += " rate=1000 in_flight=5"
            case "another name":
                line = line.replace("ann", "anne")
            case "admin":
                line += " admin"
        both.guard.keys = ring({"ann": line})
        answer = await both.ask("ann", "GET", f"/api/embed/batch/{job}")
        assert answer.status == (200 if sees else 404)


async def test_a_key_in_the_environment_is_identified_by_its_hash(tmp_path: Path) -> None:
    """Its name is a position, which passes to the next key when one is removed."""
    async with gateways(tmp_path) as both:
        first, second = (new_key("env").token for _ in range(2))
        both.tokens |= {"first": first, "second": second}
        both.guard.keys = KeyRing(keys_in_variable(f"{first},{second}", "SOLLOL_API_KEYS"))
        job = await both.made("first")
        for variable in (f"{second},{first}", second):
            both.guard.keys = KeyRing(keys_in_variable(variable, "SOLLOL_API_KEYS"))
            answer = await both.ask("second", "GET", f"/api/batch-status?job={job}")
            assert answer.status == 404
        both.guard.keys = KeyRing(keys_in_variable(f"x{second},{first}", "SOLLOL_API_KEYS"))
        assert (await both.ask("first", "GET", f"/api/batch-status?job={job}")).status == 200


def everything_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def test_no_key_is_in_the_file(tmp_path: Path) -> None:
    async with gateways(tmp_path) as both:
        for name in ("ann", "ops", "env"):
            await both.made(name)
        stored = everything_in(tmp_path)
        assert b"ann" in stored
        assert b"env:" in stored
        for key in both.guard.keys:
            assert key.digest not in stored
            assert key.digest.hex().encode() not in stored
        for token in both.tokens.values():
            assert token.encode() not in stored


# Counts of the queue.


async def test_metrics_of_the_queue_need_an_admin_key(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    keys = {name: new_key(name, KEYS[name]) for name in ("ann", "ops")}
    file = tmp_path / "keys.txt"
    file.write_text("\n".join(key.line for key in keys.values()))
    async with FakeOllama(models=MODELS) as node:
        config = SOLLOLConfig(
            hosts=[node.url],
            gateway_port=0,
            metrics_port=0,
            api_keys_file=str(file),
            autobatch_path=str(tmp_path / "queue.db"),
        )
        async with SOLLOL(config) as sollol, aiohttp.ClientSession() as session:
            for url, name, is_there in (
                (f"{sollol.url}/metrics", "ann", False),
                (f"{sollol.url}/metrics", "ops", True),
                (sollol.metrics_url, "ann", True),  # a port of its own, without keys
            ):
                assert url is not None
                headers = {"Authorization": f"Bearer {keys[name].token}"}
                async with session.get(url, headers=headers) as answer:
                    assert answer.status == 200
                    text = await answer.text()
                assert ("sollol_autobatch_queued" in text) is is_there
                assert "sollol_host_requests_total" in text
