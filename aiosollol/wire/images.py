"""Images in requests to other APIs, as Ollama takes them: base64 without a prefix.

The rules and the words are those of Ollama's openai/openai.go and anthropic/anthropic.go.
"""

from __future__ import annotations

from binascii import Error, a2b_base64

from aiosollol.wire.fields import early

_PREFIXES = (
    "data:;base64,",
    "data:image/jpeg;base64,",
    "data:image/jpg;base64,",
    "data:image/png;base64,",
    "data:image/webp;base64,",
)


def from_url(url: str) -> str:
    """The image of a data URL. Raises Refusal: what would have to be fetched is not."""
    if url.startswith(("http://", "https://")):
        raise early(
            "image URLs are not currently supported, please use base64 encoded data instead"
        )
    for prefix in _PREFIXES:
        if url.startswith(prefix):
            return checked(url[len(prefix) :], "invalid image input")
    raise early("invalid image input")


def checked(data: str, problem: str) -> str:
    """`data` if it is base64, padded and of the standard alphabet; `problem` is refused with."""
    if "\n" in data or "\r" in data:  # Go looks over line ends
        data = data.replace("\n", "").replace("\r", "")
    try:
        a2b_base64(data, strict_mode=True)
    except (Error, ValueError) as error:
        raise early(problem) from error
    return data
