"""The chats that a node is answering: how many at once, and when the next could begin."""

from __future__ import annotations

import pytest

from aiosollol.core.routing.output_lengths import OutputLengths
from aiosollol.core.routing.running_chats import RunningChat, RunningChats


@pytest.fixture
def lengths() -> OutputLengths:
    known = OutputLengths()
    known.observe(100.0)
    return known


def sent(chats: RunningChats, lengths: OutputLengths, at: float) -> RunningChat:
    chat = RunningChat(at, at + 1.0, 0.1, 0, lengths)  # ends 11 s later
    chats.enter(chat)
    return chat


def test_a_free_slot_is_no_wait_and_a_full_node_is_one(lengths: OutputLengths) -> None:
    chats = RunningChats()
    chats.saw(2, are_all=True)
    assert chats.slots == 1
    chats = RunningChats()
    chats.saw(2, are_all=False)
    sent(chats, lengths, 0.0)
    assert chats.ahead(0.0) == 0.0
    sent(chats, lengths, 5.0)
    assert chats.ahead(5.0) == pytest.approx(0.5 * 6.0), "it may have more slots"
    chats.saw(2, are_all=True)
    assert chats.ahead(5.0) == pytest.approx(6.0)
    assert chats.ahead(5.0, queued=20.0) == pytest.approx((6.0 + 11.0 + 20.0) / 2)


def test_what_is_left_follows_from_what_was_produced(lengths: OutputLengths) -> None:
    chats = RunningChats()
    chat = sent(chats, lengths, 0.0)
    assert chat.left(0.0) == pytest.approx(11.0)
    chat.began(3.0)
    assert chat.left(3.0) == pytest.approx(10.0)
    assert chat.left(10.0) == pytest.approx(3.0)
    assert chat.left(15.0) == pytest.approx(2.0), "late by 2 s, so it is expected to need as much"


def test_active_at_a_time(lengths: OutputLengths) -> None:
    chats = RunningChats()
    first, second, third = (sent(chats, lengths, at) for at in (0.0, 1.0, 2.0))
    first.began(0.5)
    second.began(1.5)
    assert chats.active(third, 2.0) == 2
    assert chats.active(second, 1.0) == 1
    chats.leave(first, 9.0)
    third.began(9.5)
    assert chats.active(third, 9.5) == 1
    assert chats.active(third, 8.9) == 2
    last = sent(chats, lengths, 10.0)
    assert chats.active(last, 10.0) == 2
    whole = sent(chats, lengths, 11.0)
    assert chats.active(whole, 12.0) == 3, "the last one was sent before it"
    assert chats.active(last, 12.0) == 2


def test_a_chat_that_failed_before_it_began_was_never_active(lengths: OutputLengths) -> None:
    chats = RunningChats()
    failed, other = sent(chats, lengths, 0.0), sent(chats, lengths, 0.0)
    chats.leave(failed, 5.0)
    assert chats.active(other, 4.0) == 0
    assert len(chats) == 1
