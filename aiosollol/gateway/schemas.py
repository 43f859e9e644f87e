"""What bodies look like, as JSON Schema: the components of the OpenAPI document.

What requests have is what `wire` reads. What answers have is what Ollama's own servers answer;
nodes of other versions may add fields, so no object is closed.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiosollol.gateway.schema import (
    BOOLEAN,
    INTEGER,
    MOMENT,
    NAME,
    NUMBER,
    OBJECT,
    STRING,
    Schema,
    array,
    every,
    just,
    nullable,
    ref,
    struct,
    told,
)

NANOSECONDS = told(INTEGER, "nanoseconds")
_FUNCTION = struct(
    ["type", "function"],
    type=just("function"),
    function=struct(
        ["name"],
        name=NAME,
        description=STRING,
        parameters=told(OBJECT, "a JSON Schema"),
    ),
)
_METRICS: dict[str, Schema] = {
    "total_duration": NANOSECONDS,
    "load_duration": NANOSECONDS,
    "prompt_eval_count": told(INTEGER, "tokens read"),
    "prompt_eval_duration": NANOSECONDS,
    "eval_count": told(INTEGER, "tokens written"),
    "eval_duration": NANOSECONDS,
}
_CALL = struct(
    ["function"],
    id=STRING,
    function=struct(["name", "arguments"], name=STRING, arguments=OBJECT, index=INTEGER),
)
_DETAILS = struct(
    families={"type": ["array", "null"], "items": STRING},
    **dict.fromkeys(
        ("parent_model", "format", "family", "parameter_size", "quantization_level"), STRING
    ),
)
_LISTED: dict[str, Schema] = {
    **dict.fromkeys(("name", "model", "digest"), STRING),
    "size": told(INTEGER, "bytes"),
    "details": _DETAILS,
}
_OPENAI_USAGE = every(prompt_tokens=INTEGER, completion_tokens=INTEGER, total_tokens=INTEGER)
_VECTOR = array(NUMBER)

_SHARED: dict[str, Schema] = {
    "Model": {
        "type": "string",
        "minLength": 1,
        "description": "the name of a model; without a tag, `:latest` is meant",
    },
    "KeepAlive": {
        "description": 'how long the model stays in memory: seconds, or such as "5m" and "1h30m"; '
        "negative is for ever, 0 unloads it",
        "anyOf": [
            NUMBER,
            {"type": "string", "pattern": r"^[-+]?(0|([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+)$"},
        ],
    },
    "Options": told(OBJECT, "of the model: `temperature`, `num_ctx`, `seed`, `stop`, ..."),
    "Texts": {"anyOf": [STRING, array(STRING)]},
    "Tool": _FUNCTION,
    "Message": struct(
        ["role"],
        role=just("system", "user", "assistant", "tool"),
        content=STRING,
        thinking=STRING,
        images=array({"type": "string", "contentEncoding": "base64"}),
        tool_calls=array(_CALL),
        tool_name=STRING,
        tool_call_id=STRING,
    ),
}

_ERRORS: dict[str, Schema] = {
    "Error": every(error=STRING),
    "OpenAIError": every(
        error=every(
            message=STRING,
            type=STRING,
            param=nullable("string"),
            code={"type": ["string", "integer", "null"]},
        )
    ),
    "AnthropicError": every(
        type=just("error"), error=every(type=STRING, message=STRING), request_id=STRING
    ),
}

_OLLAMA: dict[str, Schema] = {
    "Version": every(version=STRING),
    "Tags": every(
        models=array(
            struct(
                ["name", "model", "modified_at", "size", "digest", "details"],
                **_LISTED,
                modified_at=MOMENT,
                capabilities=array(STRING),
            )
        )
    ),
    "Running": every(
        models=array(
            struct(
                ["name", "model", "size", "digest", "details", "expires_at", "size_vram", "node"],
                **_LISTED,
                expires_at=MOMENT,
                size_vram=told(INTEGER, "bytes in GPU memory"),
                context_length=INTEGER,
                node=told(STRING, "where it is; a single Ollama does not say that"),
            )
        )
    ),
    "ModelInfo": struct(
        ["details", "model_info"],
        **dict.fromkeys(("license", "modelfile", "parameters", "template", "system"), STRING),
        details=_DETAILS,
        model_info=OBJECT,
        tensors={"type": ["array", "null"], "items": OBJECT},
        capabilities=array(STRING),
        modified_at=MOMENT,
    ),
    "ChatPart": struct(
        ["model", "created_at", "message", "done"],
        model=STRING,
        created_at=MOMENT,
        message=struct(
            ["role", "content"],
            role=STRING,
            content=STRING,
            thinking=STRING,
            tool_calls=array(_CALL),
        ),
        done=told(BOOLEAN, "whether it is the last part"),
        done_reason=told(STRING, "stop, length, load or unload; with the last part"),
        **_METRICS,
    ),
    "GeneratePart": struct(
        ["model", "created_at", "response", "done"],
        model=STRING,
        created_at=MOMENT,
        response=STRING,
        thinking=STRING,
        done=told(BOOLEAN, "whether it is the last part"),
        done_reason=told(STRING, "stop, length, load or unload; with the last part"),
        context=array(INTEGER),
        **_METRICS,
    ),
    "Embeddings": struct(
        ["model", "embeddings"],
        model=STRING,
        embeddings=told(array(_VECTOR), "a vector of length 1 for each text, in order"),
        total_duration=NANOSECONDS,
        load_duration=NANOSECONDS,
        prompt_eval_count=told(INTEGER, "tokens read"),
        embedding=told(_VECTOR, "the first of them, if it was asked for with `text`"),
    ),
    "Embedding": every(embedding=told(_VECTOR, "not of length 1")),
    "Progress": struct(
        status=told(STRING, '"success" with the last part'),
        digest=STRING,
        total=told(INTEGER, "bytes on all nodes"),
        completed=INTEGER,
        error=told(STRING, "on which nodes it went wrong"),
    ),
}

_OTHERS: dict[str, Schema] = {
    "OpenAIModel": every(id=STRING, object=just("model"), created=INTEGER, owned_by=STRING),
    "OpenAIModels": every(object=just("list"), data=array(ref("OpenAIModel"))),
    "OpenAIMessage": struct(
        ["role", "content"],
        role=just("system", "developer", "user", "assistant", "tool"),
        content={
            "oneOf": [
                STRING,
                array(
                    {
                        "oneOf": [
                            every(type=just("text"), text=STRING),
                            every(
                                type=just("image_url"),
                                image_url=every(url=told(STRING, "data:image/png;base64,...")),
                            ),
                        ]
                    }
                ),
            ]
        },
        name=STRING,
        tool_call_id=STRING,
    ),
    "Effort": just("none", "minimal", "low", "medium", "high", "xhigh", "ultra", "max"),
    "ChatCompletion": every(
        id=STRING,
        object=just("chat.completion"),
        created=INTEGER,
        model=STRING,
        system_fingerprint=STRING,
        choices=array(
            struct(
                ["index", "message", "finish_reason"],
                index=INTEGER,
                message=struct(
                    ["role", "content"],
                    role=STRING,
                    content=STRING,
                    reasoning=STRING,
                    tool_calls=array(OBJECT),
                ),
                finish_reason=nullable("string"),
                logprobs=OBJECT,
            )
        ),
        usage=_OPENAI_USAGE,
    ),
    "ChatCompletionChunk": struct(
        ["id", "object", "created", "model", "choices"],
        id=STRING,
        object=just("chat.completion.chunk"),
        created=INTEGER,
        model=STRING,
        system_fingerprint=STRING,
        choices=array(
            every(index=INTEGER, delta=OBJECT, finish_reason=nullable("string")),
        ),
        usage={"oneOf": [_OPENAI_USAGE, {"type": "null"}]},
    ),
    "Completion": struct(
        ["id", "object", "created", "model", "choices"],
        id=STRING,
        object=just("text_completion"),
        created=INTEGER,
        model=STRING,
        system_fingerprint=STRING,
        choices=array(every(text=STRING, index=INTEGER, finish_reason=nullable("string"))),
        usage={"oneOf": [_OPENAI_USAGE, {"type": "null"}]},
    ),
    "Response": struct(
        ["id", "object", "created_at", "status", "model", "output", "error", "usage"],
        id=STRING,
        object=just("response"),
        created_at=INTEGER,
        completed_at=nullable("integer"),
        status=STRING,
        model=STRING,
        output=array(struct(["type"], type=just("message", "reasoning", "function_call"))),
        error=nullable("object"),
        usage=struct(
            ["input_tokens", "output_tokens", "total_tokens"],
            input_tokens=INTEGER,
            output_tokens=INTEGER,
            total_tokens=INTEGER,
        ),
    ),
    "TextBlock": every(type=just("text"), text=STRING),
    "AnthropicMessage": every(
        role=just("user", "assistant"), content={"anyOf": [STRING, array(ref("TextBlock"))]}
    ),
    "ResponseItem": struct(
        ["role", "content"],
        type=just("message"),
        role=just("system", "developer", "user", "assistant"),
        content={
            "anyOf": [STRING, array(every(type=just("input_text", "output_text"), text=STRING))]
        },
    ),
    "AnthropicAnswer": struct(
        ["id", "type", "role", "model", "content", "usage"],
        id=STRING,
        type=just("message"),
        role=just("assistant"),
        model=STRING,
        content=array(struct(["type"], type=just("text", "thinking", "tool_use"))),
        stop_reason=just("end_turn", "max_tokens", "stop_sequence", "tool_use"),
        usage=every(input_tokens=INTEGER, output_tokens=INTEGER),
    ),
    "OpenAIEmbeddings": every(
        object=just("list"),
        data=array(
            every(
                object=just("embedding"),
                embedding={
                    "oneOf": [
                        _VECTOR,
                        {"type": "string", "description": "little-endian float32 in base64"},
                    ]
                },
                index=INTEGER,
            )
        ),
        model=STRING,
        usage=every(prompt_tokens=INTEGER, total_tokens=INTEGER),
    ),
}

_HOST = every(
    host=STRING,
    available=BOOLEAN,
    latency_ms=nullable("number"),
    success_rate=nullable("number"),
    cpu_load=nullable("number"),
    gpu_free_mem=nullable("number"),
    priority=INTEGER,
    circuit_breaker=STRING,
    last_error=STRING,
    last_updated=MOMENT,
)
_JOB: dict[str, Schema] = {
    "job_id": STRING,
    "job_type": just("embed"),
    "status": STRING,
    "created_at": MOMENT,
    "started_at": nullable("string"),
    "completed_at": nullable("string"),
    "progress": every(
        total_items=INTEGER,
        completed_items=INTEGER,
        failed_items=INTEGER,
        queued_items=INTEGER,
        percent=NUMBER,
    ),
    "duration_seconds": nullable("number"),
    "documents_per_second": nullable("number"),
    "eta_seconds": nullable("number"),
    "expires_at": nullable("string"),
    "metadata": OBJECT,
}
_OWNER = told(STRING, "name of the API key that submitted it; absent without keys")


def _job(**more: Schema) -> Schema:
    return struct([*_JOB, *more], **_JOB, **more, owner=_OWNER)


_SOLLOL: dict[str, Schema] = {
    "Health": every(
        status=just("healthy", "degraded", "unhealthy"),
        service=STRING,
        version=STRING,
        task_distribution=every(enabled=BOOLEAN, ollama_nodes=INTEGER),
        available_hosts=INTEGER,
        hosts=array(_HOST),
        timestamp=MOMENT,
    ),
    "Stats": struct(
        ["hosts", "timestamp", "total_requests", "successful_requests", "failed_requests"],
        hosts=array(_HOST),
        timestamp=MOMENT,
        total_requests=INTEGER,
        successful_requests=INTEGER,
        failed_requests=INTEGER,
        nodes_used=told(OBJECT, "requests of each node"),
        node_performance=told(OBJECT, "figures of each node"),
    ),
    "Submitted": every(
        job_id=STRING,
        status=just("pending"),
        count=told(INTEGER, "documents, by the original's name"),
        total_items=told(INTEGER, "documents"),
        message=STRING,
        status_url=STRING,
        results_url=STRING,
    ),
    "Job": _job(),
    "RetriedJob": _job(retried=told(INTEGER, "documents that were queued again")),
    "Queue": struct(
        ["jobs", "total", "queued_documents", "max_documents", "worker"],
        jobs=array(ref("Job")),
        total=INTEGER,
        queued_documents=INTEGER,
        max_documents=INTEGER,
        worker=OBJECT,
        dask=OBJECT,
    ),
    "Results": _job(
        embeddings=array({"type": ["array", "null"], "items": NUMBER}),
        errors=told({"type": "object", "additionalProperties": STRING}, "by place in the job"),
    ),
    "ResultLine": struct(["index"], index=INTEGER, embedding=_VECTOR, error=STRING),
}

COMPONENTS: Mapping[str, Schema] = {**_SHARED, **_ERRORS, **_OLLAMA, **_OTHERS, **_SOLLOL}
