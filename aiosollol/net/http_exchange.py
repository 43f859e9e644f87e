"""`HttpExchange`: one request on a connection, and its answer so far."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from aiosollol.wire.content_coding import BadContent, ContentDecoder
from aiosollol.wire.http1 import BadResponse, ResponseParser

if TYPE_CHECKING:
    from aiosollol.net.connection import Connection

MAX_BODY = 64 << 20
"""Bytes of an answer, decoded, unless the request could need more."""
"""The largest answer accepted in one piece. An endless one must not fill the memory."""

MAX_ERROR_BODY = 65_536
"""Bytes read of an answer with a status other than 200: more than an error message needs."""

_MANY_BYTES = 1 << 18  # unread bytes of a stream, above which the server has to wait


class Late(Exception):
    """The deadline of an exchange has passed."""


class HttpExchange:
    """One request, and its answer as it arrives. Check it again whenever `changed` is done.

    at: the deadline, on the clock of `Deadlines`.
    is_repeat: whether the connection has answered another request before.
    is_streamed: whether each piece of the answer is a change, or only its end.

    is_over: nothing more will come; `error` is what went wrong, or None.
    is_sent: whether the whole request was handed over.
    has_begun: whether any part of the answer has arrived.
    """

    # Defaults on the class, because an exchange is made for every request.
    is_over = False
    is_sent = False
    has_begun = False
    error: Exception | None = None
    _waiter: asyncio.Future[None] | None = None
    _size = 0
    _is_paused = False
    _decoder: ContentDecoder | None = None

    def __init__(
        self, connection: Connection, at: float, *, is_repeat: bool, is_streamed: bool
    ) -> None:
        self.at = at
        self.is_repeat = is_repeat
        self._connection = connection
        self._is_streamed = is_streamed
        self.most = MAX_BODY
        self._parser = ResponseParser()
        self._pieces: list[bytes] = []

    def __repr__(self) -> str:
        state = "over" if self.is_over else "under way"
        return f"<Exchange {state}, status {self.status or 'unknown'}, {self._size} bytes unread>"

    # For the caller.

    @property
    def status(self) -> int:
        """The answer's status; 0 until its head has arrived."""
        return self._parser.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Those of the answer, names in lower case; empty until its head is there."""
        return self._parser.headers

    @property
    def was_in_vain(self) -> bool:
        """Whether the server gave up an idle connection just as it was reused.

        It closed the connection, or sent 408 because no request had come. Then the same request
        may be sent again on a new connection (RFC 9110, section 15.5.9).
        """
        if not self.is_repeat:
            return False
        return self.status == 408 or (not self.has_begun and isinstance(self.error, OSError))

    @property
    def is_readable(self) -> bool:
        """Whether `read` has data, an error, or the end."""
        return bool(self._pieces) or self.is_over

    def changed(self) -> asyncio.Future[None]:
        """A future that is done when something has changed. One task may wait at a time."""
        self._waiter = waiter = self._connection.loop.create_future()
        return waiter

    def read(self) -> bytes:
        """The part of the body that arrived since the last call; empty at its end.

        Raises `error`.
        """
        pieces = self._pieces
        if len(pieces) == 1:
            data = pieces[0]
        elif pieces:
            data = b"".join(pieces)
        elif self.error is not None:
            raise self.error
        else:
            return b""
        self._pieces = []
        self._size = 0
        if self._decoder is not None and self._is_streamed and self._decoder.has_more:
            self._decode_more()
        if self._is_paused and not self._pieces:
            self._is_paused = False
            if not self.is_over:
                self._connection.resume_reading()
        return data

    def fail(self, error: Exception) -> None:
        """End the exchange and its connection with `error`, unless it is over already."""
        if not self.is_over:
            self.error = error
            self._end(is_reusable=False)

    def expire(self) -> None:
        """End the exchange because its deadline has passed."""
        self.fail(Late())

    # For the connection.

    def feed(self, data: bytes) -> None:
        """Take a piece of the answer."""
        self.has_begun = True
        parser = self._parser
        try:
            piece = parser.feed(data)
            if parser.coding:
                piece = self._decoded(piece)
        except (BadResponse, BadContent) as error:
            self.fail(error)
            return
        if piece:
            self._pieces.append(piece)
            self._size += len(piece)
        if self._size > self.most and parser.status in (0, 200) and not self._is_streamed:
            self.fail(BadResponse(f"it is longer than {self.most} bytes"))
        elif parser.is_complete:
            # A server that answers before reading everything would take the rest of this request
            # for the start of the next.
            self._end(is_reusable=parser.keeps_alive and self.is_sent)
        elif parser.status not in (0, 200):
            if self._size >= MAX_ERROR_BODY:
                self._end(is_reusable=False)
        elif self._is_streamed:
            if self._size > _MANY_BYTES and not self._is_paused:
                self._is_paused = True
                self._connection.pause_reading()
            self.wake()

    def feed_eof(self) -> None:
        """The server closed the connection, which can mark the end of the answer."""
        try:
            self._parser.feed_eof()
        except BadResponse as error:
            self.fail(ConnectionResetError(str(error)))
        else:
            if self._decoder is not None and _is_cut_off(self._decoder):
                self.fail(BadContent(_CUT_OFF))
            self._end(is_reusable=False)

    def wake(self) -> None:
        """Wake the task that waits for a change."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _decoded(self, piece: bytes) -> bytes:
        """The content in a piece of an encoded body. Raises BadContent, and BadResponse if it is
        too long. Of a stream only as much as is kept for its reader, and the rest by `read`."""
        decoder = self._decoder
        if decoder is None:
            decoder = self._decoder = ContentDecoder(self._parser.coding)
        most = _MANY_BYTES if self._is_streamed else self.most
        is_error = self._parser.status != 200
        if is_error:
            most = MAX_ERROR_BODY
        content = decoder.decode(piece, max(0, most + 1 - self._size))
        if self._parser.is_complete and _is_cut_off(decoder):
            raise BadContent(_CUT_OFF)
        if self._size + len(content) > self.most and not (is_error or self._is_streamed):
            raise BadResponse(f"it is longer than {self.most} bytes")
        return content

    def _decode_more(self) -> None:
        """The next part of a stream, from what has come already."""
        decoder = self._decoder
        assert decoder is not None
        error: Exception | None = None
        try:
            piece = decoder.decode(b"", _MANY_BYTES + 1)
            if piece:
                self._pieces.append(piece)
                self._size = len(piece)
            if self._parser.is_complete and _is_cut_off(decoder):
                error = BadContent(_CUT_OFF)
        except BadContent as problem:
            error = problem
        if error is not None:
            self.fail(error)
            self.error = self.error or error  # it may be over, as far as the connection goes

    def _end(self, *, is_reusable: bool) -> None:
        if not self.is_over:
            self.is_over = True
            self._connection.release(is_reusable=is_reusable)
            self.wake()


_CUT_OFF = "its compressed content is cut off"


def _is_cut_off(decoder: ContentDecoder) -> bool:
    """Whether the content would have to go on, if nothing more comes."""
    return not decoder.has_more and not decoder.is_complete
