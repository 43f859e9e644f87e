"""wire/json_slices, and gojson for large documents: what orjson would read, slice by slice."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.wire import json_slices
from aiosollol.wire.json_slices import BrokenJSON, read_value
from aiosollol.wire.ollama import go_json
from aiosollol.wire.ollama.go_json import GoJSONError, loads, loads_whole

MIB = 1 << 20
# The characters that mean something, for texts and for changes.
SPECIAL = '[]{},:"\\ué 01e.-\n'


@contextmanager
def small_slices() -> Iterator[None]:
    """Slices of 12 bytes, long strings from 15, and no document that orjson gets whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_slices, "SLICE", 12)
        patch.setattr(json_slices, "LONG_STRING", 14)
        patch.setattr(go_json, "WHOLE", 0)
        yield


def strictly(document: bytes) -> Any:
    """What `read_value` makes of a whole document, as text; "broken" for what it refuses."""
    try:
        with small_slices():
            value, end = read_value(document)
    except BrokenJSON:
        return "broken"
    return "broken" if document[end:].strip(b" \t\r\n") else repr(value)


def by_orjson(document: bytes) -> Any:
    try:
        value = json_slices.read_slice(document)
    except orjson.JSONDecodeError:
        return "broken"
    return repr(value) if isinstance(value, list | dict | str) else "broken"


keys = st.sampled_from(["", "a", "b", 'k,"}', "\\", "é[", "\\" * 20])
texts = st.text(SPECIAL, max_size=30)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(-1e9, 1e9) | texts,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(keys, inner, max_size=6),
    max_leaves=40,
)
separators = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:  ")])


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    value = draw(st.lists(values, max_size=6) | st.dictionaries(keys, values, max_size=6))
    return json.dumps(value, ensure_ascii=draw(st.booleans()), separators=draw(separators)).encode()


@settings(deadline=None)
@given(documents())
def test_a_document_is_read_as_orjson_reads_it(document: bytes) -> None:
    assert strictly(document) == repr(orjson.loads(document))


changes = st.lists(
    st.tuples(st.integers(0), st.integers(0, 2), st.sampled_from([*SPECIAL.encode(), 0xFF])),
    min_size=1,
    max_size=4,
)


@settings(deadline=None)
@given(documents(), changes)
def test_what_orjson_refuses_is_refused(
    document: bytes, changed: list[tuple[int, int, int]]
) -> None:
    text = bytearray(document)
    for place, removed, byte in changed:
        at = place % (len(text) + 1)
        text[at : at + removed] = bytes([byte])
    assert strictly(bytes(text)) == by_orjson(bytes(text))


NESTED = '{"k":"%s","l":[1,2]}' % ("x" * 20)


@pytest.mark.parametrize(
    "document",
    [
        f"[{NESTED},{NESTED}]",
        f"[{NESTED}{NESTED}]",
        f"[,{NESTED}]",
        f"[{NESTED},]",
        f"[{NESTED},,1]",
        f"[{NESTED} .5]",
        f"[{NESTED}5]",
        f'{{"a":{NESTED},"a":1,"":2}}',
        f'{{"":{NESTED},"":{NESTED}}}',
        f'{{"a":{NESTED}"b":1}}',
        f'{{"a":{NESTED},}}',
        f'{{,"a":{NESTED}}}',
        f'{{"a"{NESTED}}}',
        f'{{"a"::{NESTED}}}',
        f"{{1:{NESTED}}}",
        f'{{"a","b":{NESTED}}}',
        f'{{"a\\"b\\\\":{NESTED}}}',
        f'["a",{NESTED}}}',
        f"[{NESTED}",
        f'{{"a":{NESTED}',
        f'{{"a":"{"b" * 40}',
        f'["{"b" * 40}\\',
        f'["{"b" * 40}\\"',
        f'["{chr(92) * 40}","{chr(92) * 41}""]',
        "[" + "1," * 40 + "]",
        "[" + ",".join(["1"] * 40) + "]",
        "[" + "1" * 40 + "]",
        "[" + " " * 40 + "1 " + " " * 40 + "]",
        "[]",
        "{}",
        "",
        " ",
        "]",
    ],
)
def test_edges(document: str) -> None:
    assert strictly(document.encode()) == by_orjson(document.encode())


@pytest.mark.parametrize("rest", [b"", b" ", b"]", b"{", b'"', b"\xff", b" and more"])
def test_the_end_of_the_first_value(rest: bytes) -> None:
    document = f"  [{NESTED},{NESTED}]".encode()
    with small_slices():
        value, end = read_value(document + rest)
    assert (len(value), end) == (2, len(document))


def test_depth() -> None:
    deepest = json_slices.MAX_DEPTH
    value, _ = read_value(b"[" * deepest + b"]" * deepest)
    assert isinstance(value, list)
    with pytest.raises(BrokenJSON, match="exceeded max depth"):
        read_value(b"[" * (deepest + 1) + b"]" * (deepest + 1))


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (b"[" + b"0," * 40 + b"0]", "more than 20 values"),
        (b'{"a":[' + b'"",' * 40 + b'""]}', "more than 20 values"),
        (b"[" + b"[]," * 10 + b"{}]", "more than 5 arrays and objects"),
        (b"{" + b",".join(b'"%d":0' % i for i in range(8)) + b"}", "more than 4 keys"),
        (b"[" + b'"a, b, c",' * 10 + b'"[{,"]', None),
        (b"[" + b'"\\"[,[\\\\",' * 10 + b"[]]", None),
    ],
)
def test_values_are_counted(
    document: bytes, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_slices, "MAX_VALUES", 20)
    monkeypatch.setattr(json_slices, "MAX_NESTED", 5)
    monkeypatch.setattr(json_slices, "MAX_KEYS", 4)
    if problem is None:
        assert strictly(document) == by_orjson(document)
    else:
        with pytest.raises(BrokenJSON, match=problem), small_slices():
            read_value(document)


# ---- gojson, for documents that orjson does not get in one piece


@settings(deadline=None)
@given(documents(), st.text("{}[]:,x \"'", max_size=4))
def test_what_follows_the_first_value(document: bytes, rest: str) -> None:
    value = orjson.loads(document)
    with small_slices():
        assert loads(document + b" " + rest.encode()) == value
        assert loads_whole(document + b" \n") == value
        if rest.strip():
            with pytest.raises(GoJSONError):
                loads_whole(document + rest.encode())


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (b"[" * 8 * MIB, "invalid character '[' exceeded max depth"),
        (b'{"a":' * MIB, "invalid character '{' exceeded max depth"),
        (b"[" + b"[" * 2000 + b"]" * 2000 + b"," + b"0," * MIB + b"0]", "exceeded max depth"),
        (b'{"a":[' + b"0," * MIB + b"}", "invalid character or number in the JSON, after"),
        (b'{"a":[' + b"0," * MIB, "unexpected EOF"),
        (b'{"a":"' + b"a" * MIB, "unexpected EOF"),
        (b'{"a":[' + b"0," * MIB + b"1e999]}", "invalid character or number in the JSON, after"),
        (b'{"a":[1e999,' + b"0," * MIB + b"0]}", "json: cannot unmarshal number 1e999 into"),
        (b"1" * MIB, f"json: cannot unmarshal number {'1' * 40} into Go value of type float64"),
        (b"x" * 8 * MIB, "invalid character 'x' looking for beginning of value"),
        (b" " * 8 * MIB, "EOF"),
        (b'["' + b"\xff" * 9 * MIB + b'"]', "invalid character or number in the JSON, after"),
        (b"[" + b"{}," * 2 * MIB + b"{}]", "invalid input: more than 1,000,000 arrays and objects"),
        (b"[" + b"0," * 6 * MIB + b"0]", "invalid input: more than 5,000,000 values"),
    ],
)
def test_large_documents_are_refused(document: bytes, problem: str) -> None:
    with pytest.raises(GoJSONError, match=f"^{re.escape(problem)}"):
        loads(document)


@pytest.mark.parametrize(
    ("document", "length"),
    [
        (b'{"b":"\\ud800","a":[' + b"0," * 4 * MIB + b"0]}", 4 * MIB + 1),
        (b'{"a":[' + b'"\\ud800\xff",' * (MIB // 10) + b'""],"b":"\xff"} and more', MIB // 10 + 1),
        (b'{"a":{' + b",".join(b'"%d":0' % i for i in range(300_000)) + b'},"b":"\xff"}', 300_000),
        (b'{"a":[' + b'{"r":"u","c":"\\n"},' * 100_000 + b'{}],"b":"\\udc00"}', 100_001),
        (b'{"a":"' + b'\\"' * MIB + b'","b":"\xff"}', MIB),
        (b'{"a":"' + b"\\\\" * MIB + b'","b":"\xff"}', MIB),
    ],
)
def test_large_documents_are_read(document: bytes, length: int) -> None:
    value = loads(document)
    assert len(value["a"]) == length
    assert value["b"] == "\ufffd" or document.endswith(b"0]}")


def test_a_large_string_is_one() -> None:
    assert loads(b'"' + b"a" * MIB + b'" x') == "a" * MIB


@pytest.mark.parametrize("document", [b"[0," * 8 * MIB, b'{"a":[' + b"0," * MIB + b"}", b"[" * MIB])
def test_only_the_beginning_is_scanned_in_python(
    document: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned = []

    class Scanner(go_json._Scanner):
        def __init__(self, text: str) -> None:
            scanned.append(len(text))
            super().__init__(text)

    monkeypatch.setattr(go_json, "_Scanner", Scanner)
    with pytest.raises(GoJSONError):
        loads(document)
    assert scanned == [64 << 10]


def test_orjson_gets_no_more_than_some_slices_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Recorded:
        JSONDecodeError = orjson.JSONDecodeError

        @staticmethod
        def loads(text: bytes | str) -> Any:
            sizes.append(len(text))
            return orjson.loads(text)

    for module in (go_json, json_slices):
        monkeypatch.setattr(module, "orjson", Recorded)
    deep = b"[" * 300 + b"0," * 20_000 + b"0" + b"]" * 300
    for document in (
        b'{"a":{' + b",".join(b'"%d":0' % i for i in range(300_000)) + b"}}",
        b"[" + b"[]," * 300_000 + b"[]]",
        b"[" + b'{"a":{"b":[{},{"c":[0]}]}},' * 30_000 + b"0]",
        b"[" + b'"a, b", ' * 100_000 + b"0]",
        b"[" + b",".join([deep] * 20) + b"]",
        b'{"a":[' + b"0," * MIB + b"0",
    ):
        try:
            loads(document)
        except GoJSONError:
            assert document.endswith(b",0")
    assert max(sizes) <= 3 * json_slices.SLICE
