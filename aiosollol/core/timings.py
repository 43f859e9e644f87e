"""`ServerTimings`: what a server measured of one answer."""

from __future__ import annotations

from typing import NamedTuple


class ServerTimings(NamedTuple):
    """The durations of one answer, by the server's own clock, in seconds; 0 if not reported.

    total: from the arrival of the request to the end of the answer.
    load: until the model was in memory, with the wait for the server's scheduler.
    prompt_tokens, prefill: tokens of the prompt, cached ones included, and the time for the others.
    output_tokens, decode: tokens of the answer, and the time for them.
    """

    total: float
    load: float = 0.0
    prompt_tokens: int = 0
    prefill: float = 0.0
    output_tokens: int = 0
    decode: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt_tokens + self.output_tokens

    @property
    def waited(self) -> float:
        """The wait for a slot on the server, of a chat or generate."""
        return max(0.0, self.total - self.load - self.prefill - self.decode)
