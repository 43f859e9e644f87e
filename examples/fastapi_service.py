"""A FastAPI application with a pool that lives as long as the application.

    pip install fastapi uvicorn
    OLLAMA_NODES="http://10.0.0.2:11434 http://10.0.0.3:11434" python examples/fastapi_service.py
    curl --json '{"texts": ["one", "two"]}' http://127.0.0.1:8080/embed

Ctrl-C and SIGTERM let running requests finish, then close the pool.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from aiosollol import InvalidInput, OllamaPool, RequestFailed

NODES = os.environ.get("OLLAMA_NODES", "").split() or None
MODEL = os.environ.get("OLLAMA_MODEL", "nomic-embed-text")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with OllamaPool(NODES) as pool:
        yield {"pool": pool}  # becomes request.state


app = FastAPI(lifespan=lifespan)


class EmbedBody(BaseModel):
    texts: list[str]


@app.post("/embed")
async def embed(body: EmbedBody, request: Request) -> Response:
    pool: OllamaPool = request.state.pool
    vectors = await pool.embed_batch(MODEL, body.texts)
    # As bytes, because FastAPI would convert every number separately.
    answer = orjson.dumps({"dim": vectors.dim, "vectors": vectors.tolist()})
    return Response(answer, media_type="application/json")


@app.get("/stats")
async def stats(request: Request) -> dict[str, Any]:
    pool: OllamaPool = request.state.pool
    return pool.get_stats()


@app.exception_handler(InvalidInput)
async def answer_bad_request(request: Request, error: Exception) -> Response:
    return Response(str(error), status_code=400)


@app.exception_handler(RequestFailed)
async def answer_unavailable(request: Request, error: Exception) -> Response:
    return Response(str(error), status_code=503)  # the message lists the error of each node


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))
