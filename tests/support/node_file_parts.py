"""Nodes and node files for tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiosollol.config.files import (
    load_nodes,
)
from aiosollol.core.node import NodeSpec
from aiosollol.errors import ConfigError

ONE = NodeSpec("http://10.0.0.2:11434", "gpu1")
TWO = NodeSpec("http://10.0.0.3:11434")
FULL = NodeSpec(
    "https://ollama.example.com/gpu1",
    "gpu2",
    priority=2,
    machine="rack1",
    headers={"Authorization": "Bearer s3cret"},
    max_concurrency=4,
    vram_gb=24.5,
    fingerprint="ab" * 32,
)


def written(tmp_path: Path, text: str, name: str = "nodes.json") -> Path:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return path


def failure(path: Path | str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_nodes(path)
    assert caught.value.source == str(path)
    assert str(path) in str(caught.value)
    return caught.value
