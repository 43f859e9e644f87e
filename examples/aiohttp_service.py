"""An aiohttp application with a pool that lives as long as the application.

    OLLAMA_NODES="http://10.0.0.2:11434 http://10.0.0.3:11434" python examples/aiohttp_service.py
    curl -d '{"texts": ["one", "two"]}' http://127.0.0.1:8080/embed

Ctrl-C and SIGTERM let running requests finish, then close the pool.
"""

import os
from collections.abc import AsyncIterator

from aiohttp import web

from aiosollol import InvalidInput, OllamaPool, RequestFailed

NODES = os.environ.get("OLLAMA_NODES", "").split() or None
MODEL = os.environ.get("OLLAMA_MODEL", "nomic-embed-text")
POOL = web.AppKey("pool", OllamaPool)


async def open_pool(app: web.Application) -> AsyncIterator[None]:
    async with OllamaPool(NODES) as app[POOL]:
        yield


async def embed(request: web.Request) -> web.Response:
    try:
        texts = (await request.json())["texts"]
        vectors = await request.app[POOL].embed_batch(MODEL, texts)
    except InvalidInput as error:
        raise web.HTTPBadRequest(text=str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise web.HTTPBadRequest(text='send {"texts": ["one", "two"]}') from error
    except RequestFailed as error:  # its message lists the error of each node
        raise web.HTTPServiceUnavailable(text=str(error)) from error
    return web.json_response({"dim": vectors.dim, "vectors": vectors.tolist()})


async def stats(request: web.Request) -> web.Response:
    return web.json_response(request.app[POOL].get_stats())


def make_app() -> web.Application:
    app = web.Application(client_max_size=64 * 1024**2)
    app.cleanup_ctx.append(open_pool)
    app.add_routes([web.post("/embed", embed), web.get("/stats", stats)])
    return app


if __name__ == "__main__":
    # handler_cancellation: a client that disconnects cancels its requests on the nodes.
    port = int(os.environ.get("PORT", "8080"))
    web.run_app(make_app(), host="127.0.0.1", port=port, handler_cancellation=True)
