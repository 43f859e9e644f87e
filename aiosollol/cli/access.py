"""The options --header, --api-key and --ca: how commands reach nodes that want a token or TLS."""

from __future__ import annotations

import functools
import inspect
import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from aiosollol.core.address import parse_ollama_host
from aiosollol.errors import InvalidInput

KEY_VARIABLE = "AIOSOLLOL_API_KEY"

Header = Annotated[
    list[str] | None,
    typer.Option("--header", metavar="NAME:VALUE", help="Header for the named nodes; repeatable."),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help="API key of the named nodes or gateway, or @FILE that holds it. "
        f"Default: ${KEY_VARIABLE}.",
        show_default=False,
    ),
]
Authority = Annotated[
    str | None,
    typer.Option(
        "--ca",
        metavar="FILE",
        help="PEM file of the certificate authorities for https.",
        show_default=False,
    ),
]
_OPTIONS = {"header": Header, "api_key": ApiKeyOption, "ca": Authority}

_headers: dict[str, str] = {}


def reaches_nodes(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options, which `named_nodes` then applies."""

    @functools.wraps(command)
    def with_access(**given: Any) -> None:
        header, api_key, ca = (given.pop(name) for name in _OPTIONS)
        use(header or (), api_key, ca)
        command(**given)

    signature = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in _OPTIONS.items()
    ]
    parameters = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in signature.parameters.values()
    ]
    whole = signature.replace(parameters=[*parameters, *added])
    with_access.__signature__ = whole  # type: ignore[attr-defined]
    with_access.__annotations__ = {name: each.annotation for name, each in whole.parameters.items()}
    return with_access


def use(headers: Sequence[str], api_key: str | None, ca: str | None) -> None:
    """Apply the options to this process. Blocks. Raises InvalidInput."""
    _headers.clear()
    _headers.update(read_headers(headers, "" if api_key is None else read_key(api_key)))
    if ca is not None:
        try:
            ssl.create_default_context(cafile=ca)
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or "it holds no certificate"
            raise InvalidInput(f"--ca {ca}: {reason}; name a PEM file of certificates") from error
        os.environ["SSL_CERT_FILE"] = ca  # which OpenSSL reads


def read_key(given: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """The key of the option or the variable; "" for none. Raises InvalidInput."""
    key = environ.get(KEY_VARIABLE, "") if given is None else given
    if key.startswith("@"):
        try:
            with open(os.path.expanduser(key[1:]), encoding="utf-8") as file:
                key = file.read()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise InvalidInput(f"the API key cannot be read from {key[1:]}: {reason}") from error
    key = key.strip()
    if any(not " " < character < "\x7f" for character in key):
        raise InvalidInput("an API key has no spaces, control characters or letters beyond ASCII")
    if given is not None and not key:
        raise InvalidInput("--api-key is empty")
    return key


def read_headers(lines: Sequence[str], key: str = "") -> dict[str, str]:
    """Headers from lines such as ``X-Token: abc``. Raises InvalidInput."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise InvalidInput("write a header as 'NAME: VALUE', such as --header 'X-Token: abc'")
        headers[name.strip()] = value.strip()
    return headers


def named_nodes(
    nodes: Sequence[str], environ: Mapping[str, str] = os.environ
) -> list[str | dict[str, Any]] | None:
    """The nodes named on the command line or in OLLAMA_HOST, with the headers; None for none.

    Without headers, OLLAMA_HOST is left to `pool.bootstrap`. Raises InvalidInput for options
    without a node: they are secret, and must not go to what a search finds.
    """
    headers = {**read_headers((), read_key(None, environ)), **_headers}
    if not headers:
        return list(nodes) or None
    if not nodes and (host := environ.get("OLLAMA_HOST", "").strip()):
        nodes = [str(parse_ollama_host(host))]
    if not nodes and _headers:
        raise InvalidInput("--header and --api-key need --node: name the nodes that may see them")
    return [{"url": node, "headers": headers} for node in nodes] or None
