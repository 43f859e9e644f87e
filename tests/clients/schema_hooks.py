"""What schemathesis is told of the gateway in test_clients_schema.py: names that exist, and checks.

Its own check for server errors takes none at all, and its own for valid requests takes no 400.
Some answers are right all the same: that a model cannot do what the schema allows no schema can
tell. They are listed here, by their words; anything else fails.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

import schemathesis
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from schemathesis.generation import GenerationMode

MODELS = ["tiny-chat", "all-minilm:latest", "no-such"]
NODES = ["all", "node-0", "node-0,node-1"]

SERVER_ERRORS = {
    500: re.compile("404 page not found"),  # fake nodes neither pull nor create
    501: re.compile("does not support embeddings"),
}
REFUSALS = re.compile(
    "|".join(
        (
            "does not support (chat|generate|tools|insert|thinking)",
            "cannot unmarshal number .* of type (int|float64)",  # as 1.0, an integer for JSON
            "dimensions must be a positive whole number",  # the same
            "invalid (image input|base64 image data|input type)",
            "a tool must be a function with a name",
            "was cancelled",  # a job that is to be retried
        )
    )
)


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Let it ask for what there is: random names would be answered 404 and nothing else.

    And what talks is to talk, whole or as a stream: without a prompt it only loads its model.
    """
    raw_schema["components"]["schemas"]["Model"] = {"enum": MODELS}
    jobs = os.environ["AIOSOLLOL_TEST_JOBS"].split(",")
    names = {"node": NODES, "id": jobs, "job": jobs}
    for path in raw_schema["paths"].values():
        for operation in path.values():
            body = operation.get("requestBody", {"content": {"": {"schema": {}}}})
            (form,) = body["content"].values()
            if "stream" in form["schema"].get("properties", ()):
                talked = {"stream", "messages", "prompt", "input"} & set(
                    form["schema"]["properties"]
                )
                form["schema"]["required"] = sorted({*form["schema"]["required"], *talked})
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in names:
                    parameter["schema"] = {"enum": names[parameter["name"]]}


@schemathesis.check
def server_errors_are_known(ctx: Any, response: Any, case: Any) -> None:
    """An error that is the server's is one of those listed, and is documented as such."""
    if response.status_code < 500:
        return
    known = SERVER_ERRORS.get(response.status_code)
    assert known is not None, f"{response.status_code}: {response.text}"
    assert known.search(response.text), response.text
    documented = case.operation.definition.raw["responses"]
    assert str(response.status_code) in documented


@schemathesis.check
def refusals_are_known(ctx: Any, response: Any, case: Any) -> None:
    """A request that fits the schema is refused for a listed reason or for none."""
    is_valid = case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE
    if response.status_code == 400 and is_valid:
        assert REFUSALS.search(response.text), response.text


@schemathesis.check
def parts_fit_their_schema(ctx: Any, response: Any, case: Any) -> None:
    """Each line, or the data of each event, of a stream. Its own check looks at neither."""
    kind = response.headers.get("content-type", [""])[0].partition(";")[0]
    raw = case.operation.schema.raw_schema
    lines = response.content.decode().split("\n")  # `splitlines` knows more ends than these have
    if kind == "application/x-ndjson":
        parts = [line for line in lines if line]
        schema = content(case, response, kind)
    elif kind == "text/event-stream":
        parts = [line[6:] for line in lines if line.startswith("data: {")]
        event = content(case, response, kind)
        (schema,) = [
            form["properties"]["data"]["contentSchema"]
            for form in event.get("anyOf", [event])
            if "contentSchema" in form["properties"]["data"]
        ]
    else:
        return
    validator = Draft202012Validator({"allOf": [schema], "components": raw["components"]})
    for part in parts:
        problem = best_match(validator.iter_errors(json.loads(part)))
        assert problem is None, f"{part}: {problem.message}"


def content(case: Any, response: Any, kind: str) -> dict[str, Any]:
    """The schema of what has come, as it stands in the document."""
    operation = case.operation
    raw = operation.schema.raw_schema["paths"][operation.path][operation.method.lower()]
    schema: dict[str, Any] = raw["responses"][str(response.status_code)]["content"][kind]["schema"]
    return schema


@schemathesis.check
def errors_have_a_request_id(ctx: Any, response: Any, case: Any) -> None:
    """Whatever happens, it can be looked up in the log."""
    assert "x-request-id" in response.headers
