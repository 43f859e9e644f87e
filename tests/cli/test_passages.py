"""Cutting texts into passages: nothing but white space is lost, and cuts fall where they should."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiosollol.cli.embed_files import Passage, cut_passages
from aiosollol.errors import InvalidInput

# Dense in what the cutter looks at, so that short texts already meet every rule.
tricky = st.text(alphabet=st.sampled_from("ab A.!?。”) \t\n\r\u2028é𝄞"), max_size=200)
texts = st.one_of(tricky, st.text(max_size=200))
sizes = st.integers(1, 60)


def cut(text: str, size: int) -> list[str]:
    return [passage.text for passage in cut_passages(text, size)]


@given(texts, sizes)
@example("", 5)
@example(" \n\t ", 1)
@example("a" * 100, 1)
def test_nothing_but_white_space_is_lost(text: str, size: int) -> None:
    passages = list(cut_passages(text, size))
    end = 0
    for passage in passages:
        assert not text[end : passage.start].strip()
        assert text[passage.start : passage.end] == passage.text
        assert passage.text == passage.text.strip() != ""
        assert len(passage.text) <= size
        end = passage.end
    assert not text[end:].strip()


@given(texts, sizes)
def test_equal_texts_give_equal_passages(text: str, size: int) -> None:
    assert list(cut_passages(text, size)) == list(cut_passages(text, size))


@given(st.lists(st.text("abc", min_size=1, max_size=10), max_size=50), st.integers(10, 60))
def test_a_word_that_fits_is_never_cut(words: list[str], size: int) -> None:
    assert [word for text in cut(" ".join(words), size) for word in text.split()] == words


@given(st.text("ab .", min_size=50, max_size=300), st.integers(20, 40))
def test_the_last_passage_is_no_crumb_where_words_are_short(text: str, size: int) -> None:
    passages = cut(" ".join(text.split()), size)
    longest_word = max(map(len, text.split()), default=0)
    if len(passages) > 1 and longest_word <= size // 6:
        assert len(passages[-1]) >= size // 6


CASES = [
    pytest.param("one\n\ntwo", 100, ["one\n\ntwo"], id="short paragraphs share a passage"),
    pytest.param("  one  ", 100, ["one"], id="white space at the ends goes"),
    pytest.param("first one\n\nsecond", 12, ["first one", "second"], id="after a paragraph"),
    pytest.param("first one\r\n \r\nsecond", 14, ["first one", "second"], id="Windows line ends"),
    pytest.param("It is. It was. It will.", 16, ["It is. It was.", "It will."], id="a sentence"),
    pytest.param(
        '"So?" he asks. (Yes.) No, no, no, no.',
        21,
        ['"So?" he asks. (Yes.)', "No, no, no, no."],
        id="quotes",
    ),
    pytest.param("Do this, e.g. that thing", 20, ["Do this, e.g.", "that thing"], id="words"),
    pytest.param("this one e.g.  that one here", 18, ["this one e.g.", "that one here"], id="e.g."),
    pytest.param("我来了。他走了。她在。", 8, ["我来了。", "他走了。她在。"], id="no spaces"),
    pytest.param("abcdefghij", 4, ["abcd", "efgh", "ij"], id="a word longer than a passage"),
    pytest.param("ab cdefghijklm", 6, ["ab", "cdefgh", "ijklm"], id="short before a long word"),
]


@pytest.mark.parametrize(("text", "size", "expected"), CASES)
def test_where_it_cuts(text: str, size: int, expected: list[str]) -> None:
    assert cut(text, size) == expected


def test_offsets_are_of_the_source() -> None:
    assert list(cut_passages("  alpha\n\nbeta ", 8)) == [
        Passage("alpha", 2, 7),
        Passage("beta", 9, 13),
    ]


def test_no_passage_is_tiny_where_words_are_short() -> None:
    text = "x.\n\n" + "word " * 60
    assert all(len(passage) >= 50 // 6 for passage in cut(text, 50))


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_below_one_is_refused_at_once(size: int) -> None:
    with pytest.raises(InvalidInput, match="at least 1"):
        cut_passages("text", size)


def test_long_texts_take_linear_time() -> None:
    # Each window is looked at a fixed number of times: these would take minutes otherwise.
    for text in ("\n " * 300_000 + "x", "a" * 500_000, "a. " * 200_000):
        assert sum(len(passage.text) for passage in cut_passages(text, 800)) > 0
