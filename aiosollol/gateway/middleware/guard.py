"""`Guard`: checks a request's origin, key, model and limits before an endpoint sees it.

Below it, what an API key may see and use. A request without a key may see and use everything.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from aiosollol.gateway.bodies import parse
from aiosollol.gateway.middleware.body_memory import BodyMemory
from aiosollol.gateway.middleware.body_reader import BodyReader, BodyRefused
from aiosollol.gateway.middleware.clients import client_of
from aiosollol.gateway.middleware.error_responses import denied, not_allowed
from aiosollol.gateway.middleware.keys import ApiKey, KeyRing
from aiosollol.gateway.middleware.limits import Limiter, Limits
from aiosollol.gateway.middleware.model_access import DEFAULT_MODEL, models_used
from aiosollol.gateway.middleware.shared_counts import SharedCounts
from aiosollol.gateway.request_content import ACCEPTED
from aiosollol.wire.ollama.server_requests import Refusal

_METHODS = "GET, HEAD, POST, PUT, DELETE, OPTIONS"
_SHOWN_HEADERS = "X-Request-ID, X-Sollol-Node, X-Sollol-Reason, Retry-After"
_DOCKER = ("host.docker.internal", "gateway.docker.internal", "host.containers.internal")
_KEPT = 256
LOCAL_ORIGINS = (
    *(
        f"{scheme}://{host}{port}"
        for scheme in ("http", "https")
        for host in ("localhost", "127.0.0.1", "0.0.0.0")
        for port in ("", ":*")
    ),
    *("app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*"),
)
"""Pages and desktop programs of this machine: what Ollama allows (envconfig/config.go)."""


class Origins:
    """The origins whose pages may use the gateway.

    allowed: origins such as ``https://chat.example.com``, with ``*`` for any characters.
    only_local: accept only a Host that is an address, "localhost" or a name of this machine. Any
        other name may be one that an attacker has resolved to this machine (DNS rebinding): names
        in .local or without a dot are resolved by any machine on the local network.
    hosts: further names to accept, with ``*`` for any characters.
    """

    def __init__(
        self, allowed: Iterable[str] = (), *, only_local: bool = False, hosts: Iterable[str] = ()
    ) -> None:
        self.allowed = tuple(origin.rstrip("/").lower() for origin in allowed)
        self.only_local = only_local
        self.hosts = tuple(host.rstrip(".").lower() for host in hosts)
        self._own = names_of_this_machine()
        self._sound_hosts: set[str] = set()

    def is_host_sound(self, host: str) -> bool:
        """Whether a request with this Host header is accepted."""
        if not self.only_local or host in self._sound_hosts:
            return True
        name = _name_in(f"//{host}").removesuffix(".")
        if not (
            _is_local_name(name)
            or name in self._own
            or any(fnmatchcase(name, pattern) for pattern in self.hosts)
        ):
            return False
        if len(self._sound_hosts) < _KEPT:
            self._sound_hosts.add(host)
        return True

    def is_sound(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` may use the gateway under the name `host`."""
        return origin.partition("://")[2] == host != "" or self.allows(origin)

    def problem_of(self, request: web.BaseRequest) -> str:
        """Why a request with this Host and Origin is refused, or ""."""
        headers = request.headers
        host = headers.get("Host", "")
        if not self.is_host_sound(host):
            return f"the host {host[:80]!r} is not one of this gateway; add it to allowed_hosts"
        origin = headers.get("Origin")
        if origin is not None and not self.is_sound(origin, host):
            return f"the origin {origin[:80]!r} is not allowed; add it to cors_origins"
        return ""

    def allows(self, origin: str) -> bool:
        """Whether the settings allow pages of `origin`."""
        return any(fnmatchcase(origin.lower(), pattern) for pattern in self.allowed)

    def preflight(self, request: web.Request) -> web.Response:
        """The response to a preflight request. `tell` adds the allowed origin."""
        headers = {
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": request.headers.get(
                "Access-Control-Request-Headers", ""
            ),
            "Access-Control-Max-Age": "600",
        }
        return web.Response(status=204, headers=headers)

    async def tell(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Let an allowed page read this response: a handler of `on_response_prepare`."""
        origin = request.headers.get("Origin")
        if origin is not None and self.allows(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _SHOWN_HEADERS
            response.headers.add("Vary", "Origin")


def _is_local_name(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in ("", "localhost", *_DOCKER) or name.endswith(".localhost")
    return True


def names_of_this_machine() -> frozenset[str]:
    """The names by which others on the network call this machine."""
    whole = socket.gethostname().rstrip(".").lower()
    short = whole.partition(".")[0]
    if not short:
        return frozenset()
    return frozenset((whole, short, f"{short}.local", f"{short}.home.arpa", f"{short}.internal"))


def local_only(origins: Origins) -> Middleware:
    """A middleware that checks Host and Origin and nothing else."""

    @web.middleware
    async def check(request: web.Request, handler: _Handler) -> web.StreamResponse:
        if problem := origins.problem_of(request):
            return denied(request.path, 403, problem)
        return await handler(request)

    return check


def _name_in(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # an incomplete IPv6 address
        return "?."


_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

KEY = web.RequestKey("aiosollol_key", ApiKey)
"""The key of a request's `ApiKey`, if it came with one."""
CLIENT = web.RequestKey("aiosollol_client", str)
"""The key of the name of a request's client, see `client_name`."""

ADMIN_PATHS = frozenset(("/api/pull", "/api/push", "/api/delete", "/api/copy", "/api/create"))
OPEN_PATHS = frozenset(("/",))
"""Paths that need no key: load balancers and Docker use them to check that the server is up."""

_JOBS = "/api/embed/batch/"  # a job named its model when it was submitted
_KEY_IS_MISSING = "an API key is needed: send the header Authorization: Bearer KEY"
_NO_KEY = {"WWW-Authenticate": "Bearer"}


class Guard:
    """Checks keys, models, origins, requests in flight, rates and bodies, as a `middleware`.

    `keys`, `limiter.limits`, `origins` and `allow_admin` may be replaced while it is used.

    shared: the counts of all processes of the gateway; None for one process.
    denied: number of refused requests, by HTTP status.
    active: admitted requests in flight.
    bodies: the memory of their bodies.
    """

    def __init__(
        self,
        keys: KeyRing | None = None,
        limits: Limits | None = None,
        *,
        origins: Origins | None = None,
        allow_admin: bool = False,
        clock: Callable[[], float] | None = None,
        shared: SharedCounts | None = None,
    ) -> None:
        self.keys = keys or KeyRing()
        self.origins = origins or Origins()
        self.allow_admin = allow_admin
        self.active = 0
        self.bodies = BodyMemory()
        self.denied: dict[int, int] = {}
        clock = clock or asyncio.get_running_loop().time
        self.limiter = Limiter(limits or Limits(), clock, shared)

    def middleware(self) -> Middleware:
        """The aiohttp middleware. Put it before everything that reads the request."""

        @web.middleware
        def guard(request: web.Request, handler: _Handler) -> Awaitable[web.StreamResponse]:
            return self._pass(request, handler)

        return guard

    async def _pass(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        headers, path = request.headers, request.path
        if problem := self.origins.problem_of(request):
            return self._refuse(path, 403, problem)
        if (
            "Origin" in headers
            and request.method == "OPTIONS"
            and "Access-Control-Request-Method" in headers
        ):
            return self.origins.preflight(request)  # browsers send no key with that
        key = None
        if len(self.keys) and path not in OPEN_PATHS:
            token = _token(headers.get("Authorization", ""), headers.get("x-api-key", ""))
            key = self.keys.find(token) if token else None
            if key is None:
                message = "this API key is not known" if token else _KEY_IS_MISSING
                return self._refuse(path, 401, message, headers=_NO_KEY)
            request[KEY] = key
        if (path in ADMIN_PATHS or path.startswith("/api/blobs")) and (
            problem := self._admin_problem(key)
        ):
            return self._refuse(path, 403, problem)
        name = f"key {key.name}" if key is not None else client_of(request.remote or "")
        request[CLIENT] = name
        if (over := self.limiter.enter(name, key)) is not None and not (
            over.can_wait and await self.limiter.wait(name)
        ):
            return self._refuse(path, 429, over.message, retry_after=over.retry_after)
        self.active += 1
        body = BodyReader(self.bodies, self.limiter.limits, name)
        try:
            try:
                await body.read(request)
            except BodyRefused as error:
                response = self._refuse(
                    path, error.status, str(error), retry_after=error.retry_after
                )
                response.force_close()
                return response
            except Refusal as error:
                accepted = ACCEPTED if error.status == 415 else {}
                return self._refuse(path, error.status, error.message, headers=accepted)
            if key is not None and key.models and (problem := await _model_problem(request, key)):
                return self._refuse(path, 403, problem)
            return await handler(request)
        finally:
            self.active -= 1
            body.release()
            self.limiter.leave(name)

    def _admin_problem(self, key: ApiKey | None) -> str:
        if not self.allow_admin:
            return "changing models is turned off: start the gateway with --allow-admin"
        if len(self.keys) and (key is None or not key.is_admin):
            return "changing models needs a key with the option admin"
        return ""

    def _refuse(self, path: str, status: int, message: str, **options: Any) -> web.Response:
        self.denied[status] = self.denied.get(status, 0) + 1
        return denied(path, status, message, **options)


def _token(authorization: str, api_key: str) -> str:
    kind, _, token = authorization.partition(" ")
    return token.strip() if kind.lower() == "bearer" else api_key.strip()


async def _model_problem(request: web.Request, key: ApiKey) -> str:
    """Why this key may not send this request, or ""."""
    path = request.path
    if request.method in ("GET", "HEAD", "OPTIONS") or path.startswith(_JOBS):
        return ""
    default = request.app.get(DEFAULT_MODEL)
    try:
        models = await parse(request, partial(models_used, path=path, default=default))
    except Refusal as error:
        return error.message
    for model in models:
        if not key.may_use(model):
            return not_allowed(model)
    return "" if models else "a request with this key must name its model"


def client_name(request: web.Request) -> str:
    """The client of a request: its key, or its address."""
    return request.get(CLIENT) or client_of(request.remote or "")


def owner_of(request: web.Request) -> str | None:
    """The owner of jobs that this request submits; None without a key."""
    key = request.get(KEY)
    return None if key is None else key.owner


def sees_only(request: web.Request) -> str | None:
    """The owner whose jobs this request sees; None if it sees all jobs."""
    key = request.get(KEY)
    return None if key is None or key.is_admin else key.owner


def may_use(request: web.Request, model: str) -> bool:
    """Whether the key of this request may use `model`."""
    key = request.get(KEY)
    return key is None or key.may_use(model)


def check_model(request: web.Request, model: str) -> None:
    """Raises Refusal, with status 403, if the key of this request may not use `model`."""
    if not may_use(request, model):
        raise Refusal(403, not_allowed(model))
