"""Settings: the values that each accepts, from an argument, a variable or a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import project_paths
import pytest
from hypothesis import given
from hypothesis import strategies as st
from settings_parts import NOTHING, OTHER, failure, with_file

from aiosollol.config.resolve import resolve
from aiosollol.config.settings import TABLE, Settings, shown
from aiosollol.errors import InvalidInput

DOCS = project_paths.DOCS / "configuration.md"
# Their default is none, which no variable can say.
NO_DEFAULT = {name for name, setting in TABLE.items() if setting.default is None}
NUMBERS: list[Any] = [
    "60",
    True,
    None.__class__,
    [1],
    float("nan"),
    float("inf"),
    10**400,
    10**5000,
    -1,
]
TEXTS: list[Any] = ["", " ", b"a", 1, ["a"], "two\nlines"]
WRONG: dict[str, list[Any]] = {
    "auto_discover": [0, 1, "true", "", []],
    "watch_network": [0, 1, "true", "", []],
    "discovery_timeout": [*NUMBERS, 0],
    "trusted": ["a", b"a", [], (), [""], [" "], [1], {"a": 1}, 5],
    "embed_timeout": [*NUMBERS, 0],
    "chat_timeout": [*NUMBERS, 0],
    "policy": ["", "Rules", 1, ["rules"]],
    "min_gain": [*NUMBERS, 1, 1.5],
    "same_machine": ["two", True],
    "canary": [0, 1, "true", "", []],
    "routing_strategy": ["fastest", 0],
    "max_retries": [*NUMBERS, 3.0, 2.5],
    "retry_budget": [*NUMBERS, 1.01],
    "hedge_rate": [*NUMBERS, 1.01],
    "outage_patience": NUMBERS,
    "max_waiting": [*NUMBERS, 3.0],
    "wait_timeout": NUMBERS,
    "live_latency_target": [*NUMBERS, 0],
    "close_timeout": NUMBERS,
    "metrics_interval": [*NUMBERS, 0],
    "first_byte_timeout": [*NUMBERS, 0],
    "stall_timeout": [*NUMBERS, 0],
    "check_interval": [*NUMBERS, 0],
    "enable_dask": [0, 1, "true", "", []],
    "dask_address": TEXTS,
    "dask_workers": [*NUMBERS, 3.0],
    "dask_threshold": [*NUMBERS, 3.0],
    "enable_ray": [0, 1, "true", "", []],
    "ray_address": TEXTS,
    "app_name": TEXTS,
    "app_weight": [*NUMBERS, 0],
}
WRONG_TEXTS = {
    "auto_discover": ["2", "maybe", "tru", "true false"],
    "watch_network": ["2", "maybe", "tru", "true false"],
    "trusted": [",", "a,,b", " , "],
    "embed_timeout": ["60s", "1 minute", "nan", "inf", "-inf", "1e999", "0", "-1", "0x10", "1,5"],
    "policy": ["RULES", "none"],
    "min_gain": ["5%", "1"],
    "max_retries": ["3.0", "three", "-1", "1e3"],
}


# The table.


def test_the_tests_know_every_setting() -> None:
    assert set(OTHER) == set(WRONG) == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_row_is_complete(name: str) -> None:
    row = TABLE[name]
    assert row.name == name
    assert row.variable == f"SOLLOL_{name.upper()}"
    assert "\n" not in row.about
    assert 10 < len(row.about) < 80
    assert name in Settings.__annotations__
    if row.default is not None:
        assert row.check(row.default) == row.default
        assert row.read(shown(row.default)) == row.default


def test_the_documents_list_each_setting_with_its_default() -> None:
    text = DOCS.read_text("utf-8")
    rows = re.findall(r"^\| `([a-z_]+)` \| `([^`]+)` \|", text, re.MULTILINE)
    assert rows == [(name, shown(row.default)) for name, row in TABLE.items()]


# One value, from each place.


@pytest.mark.parametrize("name", TABLE)
def test_each_place_gives_the_same_value(name: str, tmp_path: Path) -> None:
    value, text, toml = OTHER[name]
    variable = TABLE[name].variable
    in_file = with_file(tmp_path, f"# mine\n\n  {name} = {toml}\n")
    for resolved, source in (
        (resolve({name: value}, environ=NOTHING), "argument"),
        (resolve({}, environ={**NOTHING, variable: text}), f"environment variable {variable}"),
        (resolve({}, environ=in_file), f"{tmp_path}/aiosollol/config.toml, line 3"),
    ):
        assert resolved.settings == Settings(**{name: value})
        assert getattr(resolved.settings, name) == value != TABLE[name].default
        assert type(getattr(resolved.settings, name)) is type(value)
        assert resolved.origins[name] == (value, source)
        others = [origin for other, origin in resolved.origins.items() if other != name]
        assert {origin.source for origin in others} == {"default"}
        assert list(resolved.origins) == list(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_wrong_argument_is_named(name: str) -> None:
    for value in WRONG[name]:
        error = failure(NOTHING, **{name: value})
        assert error.source == "argument"
        assert str(error).startswith(f"{name} must be {TABLE[name].kind.expected}, not ")
        assert len(str(error)) < 250
        with pytest.raises(InvalidInput, match=f"^{name} must be "):
            Settings(**{name: value})


@pytest.mark.parametrize("name", WRONG_TEXTS)
def test_a_wrong_variable_is_named(name: str) -> None:
    variable = TABLE[name].variable
    for text in WRONG_TEXTS[name]:
        error = failure({**NOTHING, variable: text})
        assert error.source == variable
        assert str(error).startswith(f"{variable} must be {TABLE[name].kind.expected}, not ")
        assert repr(text.strip()) in str(error)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, True) for text in ("true", "True", "TRUE", "1", "yes", "Yes", "on", "ON", " on ")),
        *((text, False) for text in ("false", "FALSE", "0", "no", "NO", "off", "Off", "off\n")),
    ],
)
def test_flags_are_read_in_any_case(text: str, value: bool) -> None:
    environ = {**NOTHING, "SOLLOL_AUTO_DISCOVER": text}
    assert resolve({}, environ=environ).settings.auto_discover is value


@pytest.mark.parametrize("given", [["a"], ("a",), {"a"}, frozenset("a"), [" a "]])
def test_a_list_may_be_any_collection(given: Any) -> None:
    assert Settings(trusted=given).trusted == ("a",)


# Which place counts.


@given(
    st.dictionaries(
        st.sampled_from(list(TABLE)), st.sets(st.sampled_from(["argument", "variable"]))
    )
)
def test_arguments_count_before_variables(places: dict[str, set[str]]) -> None:
    arguments = {name: OTHER[name][0] for name, at in places.items() if "argument" in at}
    environ = dict(NOTHING)
    for name, at in places.items():
        # Where an argument is given too, the variable is the default, spelled out.
        if "variable" in at and name not in NO_DEFAULT:
            text = shown(TABLE[name].default) if "argument" in at else OTHER[name][1]
            environ[TABLE[name].variable] = text
    resolved = resolve(arguments, environ=environ)
    for name, (value, source) in resolved.origins.items():
        at = places.get(name, set())
        is_set = "argument" in at or (name not in NO_DEFAULT and "variable" in at)
        assert value == (OTHER[name][0] if is_set else TABLE[name].default)
        assert (source == "argument") == ("argument" in at)


def test_variables_count_before_the_file(tmp_path: Path) -> None:
    environ = with_file(tmp_path, "embed_timeout = 1\nchat_timeout = 2\nmax_retries = 7\n")
    environ["SOLLOL_CHAT_TIMEOUT"] = "20"
    environ["SOLLOL_EMBED_TIMEOUT"] = "10"
    resolved = resolve({"embed_timeout": 100}, environ=environ)
    assert resolved.settings == Settings(embed_timeout=100, chat_timeout=20, max_retries=7)
    assert resolved.path == f"{tmp_path}/aiosollol/config.toml"


def test_none_was_not_given_and_false_was() -> None:
    environ = {**NOTHING, "SOLLOL_AUTO_DISCOVER": "true", "SOLLOL_MAX_RETRIES": "5"}
    resolved = resolve({"auto_discover": False, "max_retries": None}, environ=environ)
    assert resolved.settings == Settings(auto_discover=False, max_retries=5)
    assert resolved.settings.auto_discover is False


@pytest.mark.parametrize("name", TABLE)
def test_an_empty_variable_is_not_set(name: str, tmp_path: Path) -> None:
    environ = with_file(tmp_path, f"{name} = {OTHER[name][2]}")
    for text in ("", "  "):
        resolved = resolve({}, environ={**environ, TABLE[name].variable: text})
        assert getattr(resolved.settings, name) == OTHER[name][0]


def test_a_wrong_value_is_an_error_even_where_another_counts(tmp_path: Path) -> None:
    """A file with a mistake is mended when it is written, not when a variable goes away."""
    environ = {**with_file(tmp_path, "max_retries = -1"), "SOLLOL_MAX_RETRIES": "1"}
    assert failure(environ).line == 1
