"""What `aiosollol embed` reads and writes: sources and sinks, without a pool."""

from __future__ import annotations

import io
import json
import struct
import sys
from pathlib import Path

import pytest

from aiosollol.cli.embed_files import Item, Reader, npy_header, open_sink, open_sources
from aiosollol.core.embeddings import Embeddings
from aiosollol.errors import InvalidInput, SollolError


def read(
    *names: object, stdin: bytes = b"", size: int = 800, field: str | None = None
) -> list[Item]:
    sources = open_sources([str(name) for name in names], io.BytesIO(stdin))
    reader = Reader(size, field)
    first, second = list(reader.read(sources)), list(reader.read(sources))
    assert first == second  # the command reads everything twice, stdin too
    return first


# --- sources


def test_text_files_become_passages_with_offsets(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfOne.\r\n\r\nTwo two.")
    assert read(path, size=8) == [
        Item("One.", str(path), None, 0, 4),
        Item("Two two.", str(path), None, 8, 16),
    ]


@pytest.mark.parametrize("names", [(), ("-",)])
def test_no_name_and_a_dash_are_stdin(names: tuple[str, ...]) -> None:
    assert read(*names, stdin="Grüße".encode()) == [Item("Grüße", "-", None, 0, 5)]


def test_files_and_stdin_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("file")
    assert [item.text for item in read("-", path, stdin=b"stdin")] == ["stdin", "file"]


def test_json_lines_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.JSONL"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n\n  \n{"text": "two\\u2028 x", "id": 7}')
    assert [(item.text, item.line) for item in read(path)] == [("one", 1), ("two\u2028 x", 4)]


def test_a_field_makes_anything_json_lines() -> None:
    stdin = b'{"body": "aa bb"}\n{"body": " "}\n{"body": "c"}'
    assert read(stdin=stdin, field="body", size=3) == [
        Item("aa", "-", 1, 0, 2),
        Item("bb", "-", 1, 3, 5),
        Item("c", "-", 3, 0, 1),
    ]


def test_size_0_keeps_every_text_whole_and_as_it_is() -> None:
    stdin = b'{"t": " a b "}\n{"t": ""}'
    assert [item.text for item in read(stdin=stdin, field="t", size=0)] == [" a b ", ""]


@pytest.mark.parametrize(
    ("stdin", "field", "problem"),
    [
        (b"ok \xff\xfe", None, r"- is not UTF-8 text \(byte 3\).*iconv"),
        (b'{"t": "x"}\n{"t": ', "t", "-, line 2 is not JSON"),
        (b'{"t": "\\ud800"}', "t", "-, line 1 is not JSON"),
        (b'["t"]', "t", "line 1 is not a JSON object"),
        (b'{"a": 1, "b": 2}', "t", r"no field 't' \(it has: a, b\).*--field"),
        (b"{}", "t", r"it has: none"),
        (b'{"t": 5}', "t", "the field 't' is not a string"),
    ],
)
def test_bad_input_is_named(stdin: bytes, field: str | None, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        read(stdin=stdin, field=field)


def test_stdin_is_named_once() -> None:
    with pytest.raises(InvalidInput, match="once"):
        read("-", "-")


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InvalidInput, match=f"none{suffix}: No such file"):
        read(tmp_path / f"none{suffix}")
    (tmp_path / f"d{suffix}").mkdir()
    with pytest.raises(InvalidInput, match=f"d{suffix}: Is a directory"):
        read(tmp_path / f"d{suffix}")


# --- sinks

ITEMS = [Item("one", "a.txt", None, 0, 3), Item("two", "b.jsonl", 2, 5, 8)]


def vectors(*rows: list[float]) -> Embeddings:
    flat = [number for row in rows for number in row]
    return Embeddings(struct.pack(f"{len(flat)}f", *flat), len(rows[0]))


def only_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_npy_is_what_numpy_reads_back(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "v.npy"
    sink = open_sink(str(path), io.BytesIO())
    sink.write(ITEMS, vectors([1, 2, 3], [4, 5, 6]))
    sink.write(ITEMS[:1], vectors([7, 8, 9]))
    sink.commit()
    loaded = numpy.load(path)
    assert loaded.dtype == numpy.float32
    assert loaded.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert numpy.load(path, mmap_mode="r").shape == (3, 3)


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (10**15, 4096)])
def test_the_npy_header_is_aligned_and_never_grows(shape: tuple[int, int]) -> None:
    header = npy_header(*shape)
    assert len(header) == 128
    assert header.startswith(b"\x93NUMPY\x01\x00")
    assert int.from_bytes(header[8:10], "little") + 10 == 128
    described = eval(header[10:])  # the format calls it a literal of Python
    order = "<" if sys.byteorder == "little" else ">"
    assert described == {"descr": f"{order}f4", "fortran_order": False, "shape": shape}


def test_npy_is_valid_after_every_segment(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    sink = open_sink(str(tmp_path / "v.npy"), io.BytesIO())
    for count in range(1, 4):
        sink.write(ITEMS[:1], vectors([count, 0]))
        (part,) = tmp_path.iterdir()
        assert numpy.load(part).shape == (count, 2)
    sink.discard()


def test_an_empty_npy_is_valid(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    sink = open_sink(str(tmp_path / "v.npy"), io.BytesIO())
    sink.commit()
    assert numpy.load(tmp_path / "v.npy").size == 0


def test_npy_refuses_another_dimension(tmp_path: Path) -> None:
    sink = open_sink(str(tmp_path / "v.npy"), io.BytesIO())
    sink.write(ITEMS[:1], vectors([1, 2]))
    with pytest.raises(SollolError, match="had 2 numbers and now have 3"):
        sink.write(ITEMS[:1], vectors([1, 2, 3]))
    sink.discard()
    assert only_files(tmp_path) == []


def test_json_lines_say_where_a_vector_is_from(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    sink = open_sink(str(path), io.BytesIO())
    sink.write(ITEMS, vectors([1, 0.5], [2, 0.25]))
    sink.commit()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"source": "a.txt", "start": 0, "end": 3, "text": "one", "embedding": [1, 0.5]},
        {
            "source": "b.jsonl",
            "line": 2,
            "start": 5,
            "end": 8,
            "text": "two",
            "embedding": [2, 0.25],
        },
    ]


def test_a_missing_vector_is_null_with_its_error() -> None:
    stdout = io.BytesIO()
    nan = struct.pack("4f", 1, 2, float("nan"), float("nan"))
    sink = open_sink(None, stdout)
    sink.write(ITEMS, Embeddings(nan, 2, errors={1: SollolError("no luck")}))
    sink.commit()
    sink.discard()
    good, bad = map(json.loads, stdout.getvalue().splitlines())
    assert "error" not in good
    assert bad["embedding"] is None
    assert bad["error"] == "no luck"


def test_the_target_is_replaced_at_once_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text("before")
    sink = open_sink(str(path), io.BytesIO())
    sink.write(ITEMS, vectors([1], [2]))
    assert path.read_text() == "before"
    sink.discard()
    assert (path.read_text(), only_files(tmp_path)) == ("before", ["v.jsonl"])

    sink = open_sink(str(path), io.BytesIO())
    sink.write(ITEMS, vectors([1], [2]))
    sink.commit()
    sink.discard()  # has no effect any more
    assert len(path.read_text().splitlines()) == 2
    assert only_files(tmp_path) == ["v.jsonl"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    real.write_text("before")
    link.symlink_to(real)
    sink = open_sink(str(link), io.BytesIO())
    sink.write(ITEMS[:1], vectors([1]))
    sink.commit()
    assert link.is_symlink()
    assert "one" in real.read_text()


@pytest.mark.parametrize("name", ["v.txt", "v", "npy", "v.npy.gz"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match=r"must end in \.npy or \.jsonl"):
        open_sink(str(tmp_path / name), io.BytesIO())
    assert only_files(tmp_path) == []


def test_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.npy").mkdir()
    with pytest.raises(InvalidInput, match="directory"):
        open_sink(str(tmp_path / "d.npy"), io.BytesIO())


def test_a_folder_that_is_not_there_is_found_out_early(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        open_sink(str(tmp_path / "none" / "v.npy"), io.BytesIO())


def test_what_is_partial_does_not_take_the_place_of_what_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "v.jsonl"
    target.write_text("whole")
    sink = open_sink(str(target), io.BytesIO())
    sink.write(ITEMS[:1], vectors([1, 2]))
    assert sink.commit(is_partial=True) == tmp_path / "v.partial.jsonl"
    assert target.read_text() == "whole"
    assert only_files(tmp_path) == ["v.jsonl", "v.partial.jsonl"]
