"""The documents of a service: its settings, its examples and its containers."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import project_paths
import pytest

from aiosollol.gateway.middleware.keys import new_key
from aiosollol.service import ConfigSource, SOLLOLConfig
from aiosollol.service.security import check_bind, nodes_of, read_keys

pytestmark = pytest.mark.anyio
pytest.importorskip("prometheus_client")
ROOT = project_paths.ROOT


def test_the_documents_have_every_setting() -> None:
    text = (ROOT / "docs" / "service.md").read_text().split("## Security")[0]
    table = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", text, re.MULTILINE))
    config = SOLLOLConfig()
    assert set(table) == {each.name for each in dataclasses.fields(config)}
    for name, shown in table.items():
        value = getattr(config, name)
        value = list(value) if isinstance(value, tuple) else value
        assert json.loads(shown.replace("none", "null")) == value, name


def test_the_settings_that_are_shown_can_be_read(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "service.md").read_text()
    file = tmp_path / "gateway.toml"
    file.write_text(text.split("```toml\n")[1].split("```")[0])
    config = ConfigSource(path=str(file)).read()
    assert (config.processes, config.pool_settings()["hedge_rate"]) == (2, 0.02)
    example = ConfigSource(path=str(ROOT / "examples" / "docker" / "gateway.toml")).read()
    check_bind(example, read_keys(example, {"SOLLOL_API_KEYS": new_key("x").token}))


def test_the_containers_hang_together() -> None:
    yaml = pytest.importorskip("yaml")
    folder = ROOT / "examples" / "docker"
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    example = ConfigSource(path=str(folder / "gateway.toml")).read()
    hosts = [spec.address.host for spec in nodes_of(example) or ()]
    assert [name for name in services if name.startswith("ollama")] == hosts
    scraped = yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"]
    assert scraped[0]["static_configs"][0]["targets"] == [f"gateway:{example.metrics_port}"]


def test_the_defaults_in_the_page_about_security() -> None:
    """Each number stands before the setting that has it."""
    text = (ROOT / "docs" / "security.md").read_text().split("## Defaults")[1]
    rows = re.findall(
        r"^\| [^|]+ \| ([^|]+) \| ([^|]+) \|$", text.split("## Report")[0], re.MULTILINE
    )
    config, names = SOLLOLConfig(), {each.name for each in dataclasses.fields(SOLLOLConfig)}
    units = {"MiB": 1 << 20, "GiB": 1 << 30}
    seen = set()
    for shown, settings in rows[1:]:
        numbers = [
            int(number.replace(",", "")) * units.get(unit, 1)
            for number, unit in re.findall(r"([0-9][0-9,]*)(?: (MiB|GiB))?", shown)
        ]
        named = re.findall(r"`(\w+)`", settings.split(";")[0])
        assert set(named) <= names
        seen |= set(named)
        for name in named:
            value = getattr(config, name)
            if isinstance(value, int | float) and value and not isinstance(value, bool):
                assert value in numbers, name
    assert {"max_body", "max_bodies", "max_texts", "autobatch_owner_jobs"} <= seen
