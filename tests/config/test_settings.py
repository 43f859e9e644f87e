"""Settings: what each accepts, where it comes from, and what is said about a wrong one."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import project_paths
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.config import files
from aiosollol.config.files import settings_path
from aiosollol.config.resolve import Resolved, resolve
from aiosollol.config.settings import TABLE, Settings, shown
from aiosollol.errors import ConfigError, InvalidInput

DOCS = project_paths.DOCS / "configuration.md"
NOTHING: Mapping[str, str] = {"XDG_CONFIG_HOME": "/nowhere"}

# Another value than the default for each: as argument, as text in a variable, as TOML.
OTHER: dict[str, tuple[Any, str, str]] = {
    "auto_discover": (False, "no", "false"),
    "watch_network": (True, "yes", "true"),
    "discovery_timeout": (2.0, "2", "2"),
    "trusted": (("a", "10.0.0.2"), " a ,10.0.0.2", '["a", "10.0.0.2"]'),
    "embed_timeout": (5.5, "5.5", "5.5"),
    "chat_timeout": (1000.0, "1e3", "1e3"),
    "policy": ("rules", "rules", '"rules"'),
    "min_gain": (0.0, "0", "0"),
    "same_machine": ("one", " one ", '"one"'),
    "routing_strategy": ("round_robin", "round_robin", '"round_robin"'),
    "max_retries": (0, "0", "0"),
    "retry_budget": (1.0, "1", "1"),
    "hedge_rate": (0.0, "0", "0.0"),
    "max_waiting": (1, "1", "1"),
    "wait_timeout": (0.0, "0", "0"),
    "close_timeout": (0.0, "0", "0"),
    "metrics_interval": (0.5, ".5", "0.5"),
    "first_byte_timeout": (3600.0, "3600", "3_600"),
    "check_interval": (3600.0, "3600", "3_600"),
    "enable_dask": (True, "on", "true"),
    "dask_address": ("tcp://10.0.0.2:8786", " tcp://10.0.0.2:8786 ", '"tcp://10.0.0.2:8786"'),
    "dask_workers": (3, "3", "3"),
    "dask_threshold": (0, "0", "0"),
    "enable_ray": (True, "yes", "true"),
    "ray_address": ("ray://10.0.0.2:10001", "ray://10.0.0.2:10001", "'ray://10.0.0.2:10001'"),
    "app_name": ("night index", "night index", '"night index"'),
    "app_weight": (0.5, ".5", "0.5"),
}
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
    "routing_strategy": ["fastest", 0],
    "max_retries": [*NUMBERS, 3.0, 2.5],
    "retry_budget": [*NUMBERS, 1.01],
    "hedge_rate": [*NUMBERS, 1.01],
    "max_waiting": [*NUMBERS, 3.0],
    "wait_timeout": NUMBERS,
    "close_timeout": NUMBERS,
    "metrics_interval": [*NUMBERS, 0],
    "first_byte_timeout": [*NUMBERS, 0],
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


def with_file(tmp_path: Path, text: str) -> dict[str, str]:
    """The environment of a user whose settings file holds `text`."""
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    path = settings_path(environ)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")
    return environ


def failure(environ: Mapping[str, str], **arguments: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        resolve(arguments, environ=environ)
    return caught.value


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


# The file.


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("embed_timeout = -1", 1, "embed_timeout must be a number of seconds above 0, such as"),
        ("\n\nembed_timeout = '60'", 3, "not '60'"),
        ("a_comment = 1", 1, "unknown setting 'a_comment'; known are auto_discover, "),
        ("\nembed_timeut = 1", 2, "unknown setting 'embed_timeut'; did you mean 'embed_timeout'?"),
        ("embed-timeout = 1", 1, "did you mean 'embed_timeout'?"),
        ("SOLLOL_MIN_GAIN = 1", 1, "did you mean 'min_gain'?"),
        ("'max retries' = 1", 1, "did you mean 'max_retries'?"),
        ("[pool]\nmax_retries = 1", 1, "unknown setting 'pool'"),
        ("\n[[pools]]\n", 2, "unknown setting 'pools'"),
        ("pool.max_retries = 1", 1, "unknown setting 'pool'"),
        ("nodes = []", 1, "nodes have their own file"),
        ("max_retries = true", 1, "not True"),
        ("max_retries = 3.0", 1, "a whole number from 0 to a billion, such as 3, not 3.0"),
        ("hedge_rate = nan", 1, "not nan"),
        ("chat_timeout = inf", 1, "not inf"),
        ("trusted = 'a'", 1, "a list of at least one string"),
        ("trusted = []", 1, "a list of at least one string"),
        ("[trusted]\nx = 1", 1, "not {'x': 1}"),
        ("chat_timeout = 2020-01-01", 1, "not datetime.date"),
        ("policy = 'best'", 1, "one of 'adaptive', 'rules', not 'best'"),
        ("\r\nmax_retries = -1\r\n", 2, "not -1"),
        ("max_retries = ", 1, "not TOML: Invalid value"),
        ("max_retries = 1\nmax_retries = 2\n", 2, "not TOML: Cannot overwrite a value"),
        ("max_retries: 3", 1, "not TOML"),
        ("\n{'max_retries': 3}", 2, "not TOML"),
        ("\ntrusted = ['a',\n\n", 2, "write lines such as embed_timeout = 60"),
        ("x = " + "[" * 5000, None, "nested too deeply"),
        ("x = " + "9" * 5000, None, "not TOML"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(
    text: str, line: int | None, said: str, tmp_path: Path
) -> None:
    error = failure(with_file(tmp_path, text))
    path = f"{tmp_path}/aiosollol/config.toml"
    assert (error.source, error.line) == (path, line)
    assert str(error).startswith(f"{path}, line {line}: " if line is not None else f"{path}: ")
    assert said in str(error)


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "\ufeffmax_retries = 3", "\r\n"])
def test_an_empty_file_and_a_byte_order_mark_do_no_harm(text: str, tmp_path: Path) -> None:
    assert resolve({}, environ=with_file(tmp_path, text)).settings == Settings()


def test_without_a_file_there_are_defaults(tmp_path: Path) -> None:
    resolved = resolve({}, environ={"XDG_CONFIG_HOME": str(tmp_path)})
    assert resolved.settings == Settings()
    assert resolved.path is None


def test_the_file_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "my settings"
    path.write_text("max_retries = 9")
    environ = {**with_file(tmp_path, "max_retries = 8"), "SOLLOL_CONFIG": str(path)}
    assert resolve({}, environ=environ).settings.max_retries == 9
    assert resolve({}, environ=environ).path == str(path)
    assert resolve({}, environ=environ, path=os.devnull).settings.max_retries == 3
    assert resolve({}, environ={**environ, "SOLLOL_CONFIG": ""}).settings.max_retries == 8
    assert resolve({}, environ={**environ, "SOLLOL_CONFIG": "/dev/null"}).settings == Settings()


def test_a_tilde_is_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.toml").write_text("max_retries = 9")
    environ = {**NOTHING, "SOLLOL_CONFIG": "~/x.toml"}
    assert resolve({}, environ=environ).settings.max_retries == 9


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}, "/x/aiosollol/config.toml"),
        ({"HOME": "/h"}, "/h/.config/aiosollol/config.toml"),
        ({"XDG_CONFIG_HOME": "", "HOME": "/h"}, "/h/.config/aiosollol/config.toml"),
        # As the specification has it: a relative path is ignored.
        ({"XDG_CONFIG_HOME": "x", "HOME": "/h"}, "/h/.config/aiosollol/config.toml"),
    ],
)
def test_where_the_file_is(environ: dict[str, str], path: str) -> None:
    assert str(settings_path(environ)) == path


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    path = f"{tmp_path}/no.toml"
    error = failure({**NOTHING, "SOLLOL_CONFIG": path})
    assert str(error) == f"{path}: there is no such file; make it, or unset SOLLOL_CONFIG"
    assert error.source == path
    with pytest.raises(ConfigError, match="there is no such file; name one that exists"):
        resolve({}, environ=NOTHING, path=path)


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    pipe, latin, utf16 = tmp_path / "pipe", tmp_path / "latin", tmp_path / "utf16"
    os.mkfifo(pipe)
    latin.write_bytes(b"# first\n# caf\xe9\n")
    utf16.write_bytes("max_retries = 3".encode("utf-16"))
    for path, said in (
        (tmp_path, f"{tmp_path} is a directory; name a file"),
        (pipe, f"{pipe} is not a regular file; name a file"),
        (latin, f"{latin}, line 2: not UTF-8 but another encoding; save it as UTF-8"),
        (utf16, f"{utf16}, line 1: not UTF-8 but UTF-16; save it as UTF-8"),
        (latin / "x", f"'{latin / 'x'}' cannot be read: Not a directory; name a file"),
        ("\0", "'\\x00' cannot be read: it is not a path; name a file"),
        ("x" * 300, f"'{'x' * 300}' cannot be read: File name too long; name a file"),
    ):
        with pytest.raises(ConfigError) as caught:
            resolve({}, environ=NOTHING, path=path)
        assert str(caught.value) == said
        assert caught.value.source == str(path)


def test_a_link_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    environ = with_file(tmp_path, "")
    path = settings_path(environ)
    path.unlink()
    path.symlink_to("gone")
    assert str(failure(environ)).endswith("the link to it leads nowhere: remove it")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, mode: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    environ = with_file(tmp_path, "max_retries = 3")
    monkeypatch.setattr(files, "open", refuse, raising=False)
    error = failure(environ)
    assert "config.toml: no permission to read it; run this as its owner" in str(error)
    assert isinstance(error.__cause__, PermissionError)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything, so be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_home_that_may_not_be_entered_has_no_file(tmp_path: Path) -> None:
    environ = with_file(tmp_path, "max_retries = 9")
    tmp_path.chmod(0)
    try:
        with as_nobody():
            assert resolve({}, environ=environ).settings == Settings()
    finally:
        tmp_path.chmod(0o700)


@settings(deadline=None)
@given(st.text() | st.text("=[]\"'\n# 1.truefalse_"))
def test_any_text_is_settings_or_a_config_error(text: str) -> None:
    with TemporaryDirectory() as folder:
        environ = {"SOLLOL_CONFIG": f"{folder}/x.toml"}
        Path(environ["SOLLOL_CONFIG"]).write_text(text, "utf-8")
        source = environ["SOLLOL_CONFIG"]
        try:
            resolve({}, environ=environ)
        except ConfigError as error:
            source = error.source
        assert source == environ["SOLLOL_CONFIG"]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.sampled_from(list(TABLE)), ANYTHING)
def test_any_value_is_taken_or_a_config_error(name: str, value: Any) -> None:
    try:
        settings = Settings(**{name: value})
    except ConfigError:
        return
    assert Settings(**{name: getattr(settings, name)}) == settings


# Names that are no settings.


def test_an_unknown_argument() -> None:
    error = failure(NOTHING, embed_timout=3)
    assert str(error) == "unknown setting 'embed_timout'; did you mean 'embed_timeout'?"
    with pytest.raises(ConfigError, match="'zzz'; known are auto_discover, "):
        Settings(zzz=1)


def test_variables_that_are_nearly_settings_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    environ = {
        **NOTHING,
        "SOLLOL_EMBED_TIMEOT": "5",
        "sollol_chat_timeout": "5",
        "SOLLOL_CONFG": "5",
        "SOLLOL_REDIS_URL": "redis://10.0.0.1",
        "SOLLOL_METRICS_PORT": "9090",
        "AIOSOLLOL_REQUIRE_ALL": "1",
    }
    resolved = resolve({}, environ=environ)
    assert resolved.settings == Settings()
    assert resolved.strangers == {
        "SOLLOL_CONFG": "SOLLOL_CONFIG",
        "SOLLOL_EMBED_TIMEOT": "SOLLOL_EMBED_TIMEOUT",
        "SOLLOL_METRICS_PORT": "",
        "SOLLOL_REDIS_URL": "",
        "sollol_chat_timeout": "SOLLOL_CHAT_TIMEOUT",
    }
    assert [record.message for record in caplog.records] == [
        "environment variables that are no settings: "
        "SOLLOL_CONFG (did you mean SOLLOL_CONFIG?), "
        "SOLLOL_EMBED_TIMEOT (did you mean SOLLOL_EMBED_TIMEOUT?), "
        "sollol_chat_timeout (did you mean SOLLOL_CHAT_TIMEOUT?)"
    ]


def test_the_originals_variables_are_no_news(caplog: pytest.LogCaptureFixture) -> None:
    known = {TABLE[name].variable: OTHER[name][1] for name in TABLE}
    resolve({}, environ={**NOTHING, **known, "SOLLOL_DASK_WORKERS": "4", "SOLLOL_PORT": "1"})
    assert not caplog.records


# The value.


def test_settings_are_frozen_values() -> None:
    settings = Settings(max_retries=1, trusted=["a"])
    with pytest.raises(AttributeError, match="frozen: max_retries cannot be set"):
        settings.max_retries = 2
    with pytest.raises(AttributeError, match="frozen: other cannot be set"):
        settings.other = 2  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="frozen: max_retries cannot be deleted"):
        del settings.max_retries
    assert settings.max_retries == 1
    assert repr(settings) == "Settings(trusted=('a',), max_retries=1)"
    assert eval(repr(settings)) == settings
    for twin in (
        copy.copy(settings),
        copy.deepcopy(settings),
        pickle.loads(pickle.dumps(settings)),
    ):
        assert twin == settings
        assert hash(twin) == hash(settings)
    assert settings != Settings()
    assert settings != "settings"


def test_resolved_can_be_printed() -> None:
    resolved = resolve({"max_retries": 1}, environ=NOTHING)
    assert isinstance(resolved, Resolved)
    assert "max_retries=1" in repr(resolved)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "none"), (True, "true"), (60.0, "60"), (0.05, "0.05"), (1e-7, "1e-07"), (3, "3")],
)
def test_how_values_are_shown(value: object, text: str) -> None:
    assert shown(value) == text
    assert shown(("a", "b")) == "a, b"


def test_without_a_file_nothing_is_loaded_for_it() -> None:
    code = (
        "import sys; from aiosollol.config.resolve import resolve\n"
        "resolve({}, environ={'HOME': '/nowhere', 'SOLLOL_MIN_GAIN': '0'})\n"
        "print(sorted({'tomllib', 'difflib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
