"""The chats of this program that a node is answering, and when the next one could begin."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from aiosollol.core.routing.output_lengths import OutputLengths

_MOST_ENDED = 1024
_UNCERTAIN = 0.5  # the chance that a node with free slots so far has no more
_TOGETHER = 0.005  # seconds within which chats may arrive at the node in another order than sent


class RunningChat:
    """A chat in flight.

    sent_at: when it was sent, or its model was loaded.
    begins_at: when its first token is due, or came.
    has_begun: whether it came.
    seconds_per_token: of its answer.
    most: its limit of output tokens, 0 for none.
    lengths: of such answers.
    """

    __slots__ = ("begins_at", "has_begun", "lengths", "most", "seconds_per_token", "sent_at")

    def __init__(
        self,
        sent_at: float,
        begins_at: float,
        seconds_per_token: float,
        most: float,
        lengths: OutputLengths,
    ) -> None:
        self.sent_at = sent_at
        self.begins_at = begins_at
        self.has_begun = False
        self.seconds_per_token = seconds_per_token
        self.most = most
        self.lengths = lengths

    def loaded(self, now: float) -> None:
        """Record the end of the model load."""
        self.sent_at = now
        self.begins_at = max(now, self.begins_at)

    def began(self, now: float) -> None:
        """Record its first token."""
        self.begins_at = now
        self.has_begun = True

    def left(self, now: float) -> float:
        """Seconds until its end, as expected."""
        until = self.begins_at - now
        rate = self.seconds_per_token
        if until >= 0.0 or not rate:
            # If nothing is known of it, a late one is expected to need as long again.
            return abs(until) + rate * self.lengths.expected(self.most)
        return rate * self.lengths.left(-until / rate, self.most)


class _Ended(NamedTuple):
    began_at: float
    ended_at: float


class RunningChats:
    """The chats in flight on a node, of one model and kind.

    slots: how many it was seen to answer at once.
    may_have_more: whether no chat had to wait there yet.
    """

    __slots__ = ("_chats", "_ended", "may_have_more", "slots")

    def __init__(self) -> None:
        self.slots = 1
        self.may_have_more = True
        self._chats: dict[RunningChat, None] = {}  # in the order of sending
        self._ended: deque[_Ended] = deque(maxlen=_MOST_ENDED)

    def __len__(self) -> int:
        return len(self._chats)

    def enter(self, chat: RunningChat) -> None:
        """Record a sent chat. Pair with `leave`."""
        self._chats[chat] = None

    def leave(self, chat: RunningChat, now: float) -> None:
        """Record its end, with any outcome."""
        del self._chats[chat]
        if chat.has_begun:
            self._ended.append(_Ended(chat.begins_at, now))

    def saw(self, active: int, *, are_all: bool) -> None:
        """Record that the node was answering `active` at once. are_all: and had no more slots."""
        if are_all:
            self.slots = min(self.slots, active)
            self.may_have_more = False
        else:
            self.slots = max(self.slots, active)

    def remembers(self, at: float) -> bool:
        """Whether all chats that were in flight at `at` are still known."""
        return len(self._ended) < _MOST_ENDED or self._ended[0].ended_at < at

    def active(self, chat: RunningChat, at: float) -> int:
        """How many other chats the node was answering at `at`.

        Of a whole answer that has not ended it is not known when it began. As a server begins
        chats in order of arrival, those sent before `chat` are counted.
        """
        active = 0
        for other in self._chats:
            if other.has_begun:
                active += other is not chat and other.begins_at <= at
            else:
                active += other.sent_at < chat.sent_at - _TOGETHER
        for began_at, ended_at in reversed(self._ended):
            if ended_at < at:
                break
            active += began_at <= at
        return active

    def ahead(self, now: float, queued: float = 0.0) -> float:
        """Seconds until the node could begin one more.

        queued: seconds of the requests that would begin before.
        """
        count = len(self._chats)
        if count < self.slots and not queued:
            return 0.0
        left = [chat.left(now) for chat in self._chats]
        if count <= self.slots and not queued:
            return min(left) * (_UNCERTAIN if self.may_have_more else 1.0)
        return (sum(left) + queued) / self.slots
