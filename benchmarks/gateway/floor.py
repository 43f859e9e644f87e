"""The floor of this stack: the least that a proxy of aiohttp on both sides does.

    python -m benchmarks.gateway.floor PORT URL

It passes on method, path, type and body, and the answer as it comes. No routing, keys or metrics.
"""

import asyncio
import sys

import uvloop
from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web

PORT, URL = int(sys.argv[1]), sys.argv[2]


async def main() -> None:
    async with ClientSession(
        connector=TCPConnector(limit=0), cookie_jar=DummyCookieJar(), auto_decompress=False
    ) as session:

        async def handle(request: web.Request) -> web.StreamResponse:
            headers = {"Content-Type": request.headers.get("Content-Type", "application/json")}
            data = await request.read()
            async with session.request(
                request.method, URL + request.path_qs, data=data, headers=headers
            ) as found:
                headers = {"Content-Type": found.headers["Content-Type"]}
                if found.content_length is not None:
                    return web.Response(
                        body=await found.read(), status=found.status, headers=headers
                    )
                answer = web.StreamResponse(status=found.status, headers=headers)
                await answer.prepare(request)
                async for part in found.content.iter_any():
                    await answer.write(part)
                return answer

        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", PORT).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
