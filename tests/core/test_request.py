"""What a caller may ask for, and how a wrong argument is told: early, and by its place."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.request import (
    EmbedSettings,
    check_model,
    check_text,
    collect_texts,
    options_of,
    reload_key,
    unique_texts,
)
from aiosollol.errors import InvalidInput

SURROGATE = "ab\ud800"

GOOD_TEXTS = [
    pytest.param("", id="empty"),
    pytest.param("hello", id="ASCII"),
    pytest.param("héllo 𝄞 我", id="beyond ASCII"),
    pytest.param("\0\x1b\u2028", id="control characters"),
    pytest.param("x" * 10_000_000, id="ten million characters"),
]


@pytest.mark.parametrize("text", GOOD_TEXTS)
def test_any_text_is_good(text: str) -> None:
    check_text(text)
    assert collect_texts([text]) == ([text], {})


BAD_TEXTS = [
    pytest.param(None, "must be a string, not NoneType", id="None"),
    pytest.param(3, "must be a string, not int", id="a number"),
    pytest.param(b"x", "must be a string, not bytes", id="bytes"),
    pytest.param(["x"], "must be a string, not list", id="a list"),
    pytest.param(SURROGATE, "has a lone surrogate at character 2", id="a lone surrogate"),
    pytest.param(SURROGATE, "read the source with errors='replace'", id="and what to do"),
]


@pytest.mark.parametrize(("text", "problem"), BAD_TEXTS)
def test_a_bad_text_says_what_and_where(text: object, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_text(text)
    assert str(caught.value).startswith("input ")
    assert problem in str(caught.value)
    assert caught.value.index is None

    items, errors = collect_texts(["good", text, "good"])
    assert items == ["good", text, "good"]
    assert list(errors) == [1]
    assert str(errors[1]).startswith("item 1 ")
    assert problem in str(errors[1])
    assert errors[1].index == 1


class Text(str):
    """Strings of other libraries (numpy.str_, lxml's, ...) are strings."""


GOOD_COLLECTIONS = [
    pytest.param([], [], id="an empty list"),
    pytest.param(["a", "b", "a"], ["a", "b", "a"], id="a list"),
    pytest.param(("a", "b"), ["a", "b"], id="a tuple"),
    pytest.param((text for text in "ab"), ["a", "b"], id="a generator"),
    pytest.param({"a": 1, "b": 2}.keys(), ["a", "b"], id="the keys of a dictionary"),
    pytest.param([Text("a")], ["a"], id="a subclass of str"),
]


@pytest.mark.parametrize(("texts", "expected"), GOOD_COLLECTIONS)
def test_texts_may_be_any_collection(texts: object, expected: list[str]) -> None:
    assert collect_texts(texts) == (expected, {})


BAD_COLLECTIONS = [
    pytest.param("text", "texts is one string: pass a list", id="a string"),
    pytest.param(b"text", "must be a list of strings, not bytes", id="bytes"),
    pytest.param(bytearray(b"x"), "must be a list of strings, not bytearray", id="a bytearray"),
    pytest.param({"a": "b"}, "must be a list of strings, not dict", id="a dictionary"),
    pytest.param(MappingProxyType({}), "must be a list of strings, not mapping", id="a mapping"),
    pytest.param(None, "must be a list of strings, not NoneType", id="None"),
    pytest.param(3, "must be a list of strings, not int", id="a number"),
]


@pytest.mark.parametrize(("texts", "problem"), BAD_COLLECTIONS)
def test_what_is_no_collection_of_texts(texts: object, problem: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(problem)):
        collect_texts(texts)


def test_equal_texts_are_one_entry() -> None:
    unique = unique_texts(["b", "a", "b", "", "a", "b"], {})
    assert unique.texts == ["b", "a", ""]
    assert unique.places == [0, 1, 3]
    assert unique.repeats == {0: [2, 5], 1: [4]}


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcd")), st.sets(st.integers(0, 20)))
def test_every_text_has_its_entry_and_none_other(texts: list[str], skip: set[int]) -> None:
    unique = unique_texts(texts, dict.fromkeys(skip))
    rows = dict(zip(unique.places, unique.texts, strict=True))
    for entry, places in unique.repeats.items():
        rows |= dict.fromkeys(places, unique.texts[entry])
    assert rows == {row: text for row, text in enumerate(texts) if row not in skip}
    assert len(set(unique.texts)) == len(unique.texts)


BAD_SETTINGS: list[Any] = [
    pytest.param({"model": None}, "model must be a string, not NoneType", id="no model"),
    pytest.param({"model": ""}, "model is empty: name one", id="an empty model"),
    pytest.param({"model": " \n"}, "model is empty: name one", id="a blank model"),
    pytest.param({"dimensions": 0}, "positive whole number, not 0", id="dimensions of 0"),
    pytest.param({"dimensions": -1}, "positive whole number, not -1", id="dimensions below 0"),
    pytest.param({"dimensions": 1.5}, "positive whole number, not 1.5", id="dimensions of 1.5"),
    pytest.param({"dimensions": True}, "positive whole number", id="dimensions, a truth"),
    pytest.param({"dimensions": "8"}, "positive whole number, not '8'", id="dimensions, a string"),
    pytest.param({"truncate": 1}, "truncate must be True or False, not 1", id="truncate of 1"),
    pytest.param({"options": [1]}, "options must be a mapping, not list", id="options, a list"),
]


@pytest.mark.parametrize(("fields", "problem"), BAD_SETTINGS)
def test_wrong_settings(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(problem)):
        EmbedSettings(**{"model": "m", **fields})


def test_settings_hold_what_was_given() -> None:
    settings = EmbedSettings(model="m", dimensions=8, truncate=False, options={}, keep_alive=-1)
    assert (settings.dimensions, settings.truncate, settings.keep_alive) == (8, False, -1)
    assert EmbedSettings(model="m").options is None
    with pytest.raises(TypeError):
        EmbedSettings("m")  # type: ignore[call-arg]
    check_model("llama3.2:1b")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, {}),
        ({}, {}),
        ({"temperature": 0.5}, {}),
        ({"num_ctx": 2048, "temperature": 0.5}, {"num_ctx": 2048}),
        (
            {"use_mmap": False, "num_gpu": -1, "num_thread": None},
            {"use_mmap": False, "num_gpu": -1, "num_thread": None},
        ),
        ({"num_ctx": "2048"}, {"num_ctx": "2048"}),
        ({"num_ctx": 2048.0}, {"num_ctx": 2048.0}),
        ({"num_ctx": [1, {"a": 2}]}, {"num_ctx": [1, {"a": 2}]}),
        ({"num_ctx": object()}, None),
        ({"num_ctx": float("nan")}, None),
    ],
)
def test_a_key_tells_the_options_that_make_a_server_reload(
    options: dict[str, Any] | None, expected: dict[str, Any] | None
) -> None:
    key = reload_key(options)
    assert options_of(key) == expected
    if expected is not None:
        assert reload_key(expected) == key
