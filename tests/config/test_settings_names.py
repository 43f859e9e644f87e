"""Unknown names of settings, and how resolved settings are shown."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
from settings_parts import NOTHING, OTHER, failure

from aiosollol.config.resolve import Resolved, resolve
from aiosollol.config.settings import TABLE, Settings, shown
from aiosollol.errors import ConfigError

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
        "environment variables that are not settings: "
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
