"""One partition of a collection, embedded by a fake worker and written to a real file."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from dask_parts import MODEL, NAME, need, vector

need("pyarrow", "pandas")

import pandas  # noqa: E402 (what follows `need`)
import pyarrow.parquet  # noqa: E402

from aiosollol.core.embeddings import Embeddings  # noqa: E402
from aiosollol.core.offload.partitions import Partition, PartitionResult  # noqa: E402
from aiosollol.core.offload.write_report import (  # noqa: E402
    BadPart,
    OnError,
    WriteOrder,
    WrittenPart,
)
from aiosollol.core.report import NodeShare  # noqa: E402
from aiosollol.core.request import EmbedSettings, collect_texts  # noqa: E402
from aiosollol.core.scheduling.planner import PlanOptions  # noqa: E402
from aiosollol.core.stats import NodeCounters  # noqa: E402
from aiosollol.engines.dask import parquet  # noqa: E402
from aiosollol.engines.dask.parquet import write_part  # noqa: E402
from aiosollol.errors import BadRequest, EngineError, InvalidInput, SollolError  # noqa: E402

DIM = MODEL.dim


class FakeEmbed:
    """Vectors of the fakes; a text with "bad" in it is refused. sizes: of what was asked for."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, partition: Partition) -> PartitionResult:
        texts = list(partition.texts)
        self.sizes.append(len(texts))
        _, invalid = collect_texts(texts)
        errors: dict[int, SollolError] = dict(invalid)
        errors |= {
            item: BadRequest("n", 400, "too long")
            for item, text in enumerate(texts)
            if isinstance(text, str) and "bad" in text
        }
        good = len(texts) - len(errors)
        rows = [
            bytes(4 * DIM) if item in errors else vector(text) for item, text in enumerate(texts)
        ]
        dim = DIM if good else 0
        counters = NodeCounters(succeeded=1, vectors=good)
        return PartitionResult(
            b"".join(rows) if good else b"",
            dim,
            len(texts),
            "w",
            errors,
            {"n": NodeShare(items=good)},
            {"n": counters},
        )


def order(
    directory: pathlib.Path, column: str | None = None, on_error: OnError = "raise", dim: int = DIM
) -> WriteOrder:
    settings = EmbedSettings(model=NAME)
    return WriteOrder(
        settings, PlanOptions(), str(directory), column, on_error, dim, None, "run", False
    )


def rows_of(path: pathlib.Path) -> list[dict[str, Any]]:
    table = pyarrow.parquet.read_table(path)
    assert table.schema.field("embedding").type == pyarrow.list_(pyarrow.float32(), DIM)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def floats(text: str) -> list[float]:
    return Embeddings(vector(text), DIM).tolist()[0]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 9])
@pytest.mark.parametrize("is_list", [True, False])
def test_texts_and_their_vectors(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, count: int, is_list: bool
) -> None:
    monkeypatch.setattr(parquet, "ROWS", 4)
    texts = [f"text {index}" for index in range(count)]
    embed = FakeEmbed()
    part = texts if is_list else iter(texts)
    written = write_part(order(tmp_path), 7, part, embed)
    assert isinstance(written, WrittenPart)
    assert (written.file, written.rows, written.failed) == ("part-00007.parquet", count, 0)
    assert max(embed.sizes, default=0) <= 4  # so much is in memory at once
    assert sum(share.items for share in written.nodes.values()) == count
    rows = rows_of(tmp_path / "part-00007.parquet")
    assert rows == [{"text": text, "embedding": floats(text), "error": None} for text in texts]
    assert [path.name for path in tmp_path.iterdir()] == ["part-00007.parquet"]


def test_a_dataframe_keeps_its_columns(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "ROWS", 2)
    frame = pandas.DataFrame({"id": [4, 5, 6], "body": ["a", "b", "c"]}, index=[10, 20, 30])
    written = write_part(order(tmp_path, "body"), 0, frame, FakeEmbed())
    assert isinstance(written, WrittenPart)
    again = pandas.read_parquet(tmp_path / written.file)
    assert again[["id", "body"]].equals(frame)
    assert [list(each) for each in again.embedding] == [floats(text) for text in "abc"]
    assert again.error.isna().all()


@pytest.mark.parametrize(
    ("texts", "missing"),
    [
        (["a", "bad", "c", None, "e"], {1: "n: too long (status 400)", 3: "must be a string"}),
        (["bad", "bad"], {0: "too long", 1: "too long"}),  # nothing has a vector at all
        ([None], {0: "must be a string"}),
    ],
)
def test_what_failed_is_null_with_the_reason_beside(
    tmp_path: pathlib.Path, texts: Sequence[Any], missing: dict[int, str]
) -> None:
    for column, part in ((None, texts), ("body", pandas.DataFrame({"body": texts}))):
        written = write_part(order(tmp_path, column, "return"), 0, part, FakeEmbed())
        assert isinstance(written, WrittenPart)
        assert (written.rows, written.failed) == (len(texts), len(missing))
        for item, row in enumerate(rows_of(tmp_path / written.file)):
            if item in missing:
                assert row["embedding"] is None
                assert missing[item] in row["error"]
                assert not row["error"].startswith("item")
            else:
                assert row["embedding"] == floats(texts[item])
                assert row["error"] is None


def test_a_part_with_a_failure_is_not_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "ROWS", 2)
    bad = write_part(order(tmp_path), 0, ["a", "b", "c", "bad"], FakeEmbed())
    assert isinstance(bad, BadPart)
    assert bad.item == 3
    assert "too long" in str(bad.error)
    assert not list(tmp_path.iterdir())


def test_what_ends_it_half_way_leaves_nothing(tmp_path: pathlib.Path) -> None:
    def texts() -> Iterator[str]:
        yield "a"
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        write_part(order(tmp_path), 0, texts(), FakeEmbed())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["id"], "has no column 'body'; it has id"),
        (["body", "error"], "already has a column 'error'"),
        (["body", "embedding"], "already has a column 'embedding'"),
    ],
)
def test_columns_that_do_not_do(tmp_path: pathlib.Path, columns: list[str], words: str) -> None:
    frame = pandas.DataFrame({name: ["a"] for name in columns})
    with pytest.raises(InvalidInput, match=words):
        write_part(order(tmp_path, "body"), 0, frame, FakeEmbed())


def test_a_directory_that_this_worker_does_not_see(tmp_path: pathlib.Path) -> None:
    with pytest.raises(EngineError, match="name one that all workers share"):
        write_part(order(tmp_path / "nowhere"), 0, ["a"], FakeEmbed())


def test_vectors_of_another_length_are_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(EngineError, match="vectors of 4 numbers, where others have 8"):
        write_part(order(tmp_path, dim=8), 0, ["a"], FakeEmbed())
    assert not list(tmp_path.iterdir())
