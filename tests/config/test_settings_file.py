"""The file of settings: where it is, and the errors of one that is wrong or unreadable."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from settings_parts import NOTHING, failure, with_file

from aiosollol.config import files
from aiosollol.config.files import settings_path
from aiosollol.config.resolve import resolve
from aiosollol.config.settings import TABLE, Settings
from aiosollol.errors import ConfigError


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
    assert str(error) == f"{path}: there is no such file; create it, or unset SOLLOL_CONFIG"
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
    assert str(failure(environ)).endswith("the link to it is broken: remove it")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, mode: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    environ = with_file(tmp_path, "max_retries = 3")
    monkeypatch.setattr(files, "open", refuse, raising=False)
    error = failure(environ)
    assert "config.toml: no permission to read it; run this as its owner" in str(error)
    assert isinstance(error.__cause__, PermissionError)


@contextlib.contextmanager
def as_unprivileged_user() -> Iterator[None]:
    """Root may read everything, so become an unprivileged user for a while."""
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
        with as_unprivileged_user():
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
