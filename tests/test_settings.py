"""Settings: who wins, what is refused, and what is never shown."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniactors import OmniActors
from omniactors.errors import SettingsError
from omniactors.settings import (
    KNOWN,
    Address,
    MemoryUrl,
    RedisUrl,
    Settings,
    SqliteUrl,
    choose_settings,
    parse_address,
    parse_backend_url,
    parse_dotenv,
    read_settings,
)

FOLDER = Path("/work/here")
DEFAULT = SqliteUrl(FOLDER / ".omniactors/omniactors.db")
REDIS = RedisUrl("redis://h", "redis://h:6379/0")
LOCAL_REDIS = RedisUrl("redis://localhost:6379", "redis://localhost:6379/0")


def choose(url: str | None = None, *, dotenv: str = "", **environ: str) -> Settings:
    return choose_settings(url, environ=environ, dotenv=dotenv, folder=FOLDER)


# -- who wins -------------------------------------------------------------------------------------


def test_with_nothing_said_it_is_the_embedded_file() -> None:
    assert choose() == Settings(backend=DEFAULT, chosen_by="the default")


@pytest.mark.parametrize(
    ("url", "environ", "dotenv", "backend", "chosen_by"),
    [
        ("memory://", {"OMNIACTORS_URL": "sqlite:///a.db"}, "", MemoryUrl(), "the argument"),
        (None, {"OMNIACTORS_URL": "sqlite:///a.db"}, "OMNIACTORS_URL=memory://", SqliteUrl(FOLDER / "a.db"), None),
        (None, {}, "OMNIACTORS_URL=memory://", MemoryUrl(), None),
        (None, {"STORAGE_BACKEND": "sqlite"}, "OMNIACTORS_URL=memory://", MemoryUrl(), None),
        (None, {"STORAGE_BACKEND": "sqlite", "REDIS_URL": "redis://x"}, "", DEFAULT, "STORAGE_BACKEND"),
        (None, {"STORAGE_BACKEND": "redis"}, "", LOCAL_REDIS, "STORAGE_BACKEND"),
        (None, {"STORAGE_BACKEND": "redis", "REDIS_URL": "redis://h"}, "", REDIS, "STORAGE_BACKEND"),
        (None, {"REDIS_URL": "redis://h"}, "", REDIS, "REDIS_URL"),
        (None, {"OMNIACTORS_URL": "redis://h", "REDIS_URL": "redis://x"}, "", REDIS, "OMNIACTORS_URL"),
        (None, {"OMNIACTORS_URL": "memory://", "REDIS_URL": "redis://x"}, "", MemoryUrl(), "OMNIACTORS_URL"),
        ("redis://h", {}, "", REDIS, "the argument"),
        (None, {"OMNIACTORS_URL": "  "}, "", DEFAULT, "the default"),
        (None, {"OMNIACTORS_URL": ""}, "OMNIACTORS_URL=memory://", DEFAULT, "the default"),
    ],
)
def test_the_nearer_source_wins(
    url: str | None, environ: dict[str, str], dotenv: str, backend: object, chosen_by: str | None
) -> None:
    settings = choose(url, dotenv=dotenv, **environ)
    assert (settings.backend, settings.chosen_by) == (backend, chosen_by or "OMNIACTORS_URL")


def test_every_setting_is_read() -> None:
    settings = choose(
        OMNIACTORS_URL="redis://h",
        OMNIACTORS_PREFIX="{shop}:",
        OMNIACTORS_LEASE="7.5",
        OMNIACTORS_STREAM_LIMIT="1000",
        OMNIACTORS_ENTRY_LIMIT="65536",
        OMNIACTORS_TOKEN="s3cret",
        OMNIACTORS_LISTEN="127.0.0.1:8765",
        OMNIACTORS_ALLOWED_HOSTS="omni.example, omni_watch,10.0.0.7, [::1] ",
        OMNIACTORS_GRACE="2.5",
        OMNIACTORS_RESULT_TTL="60",
        OMNIACTORS_DEDUPE_WINDOW="0",
        OMNIACTORS_SYNCHRONOUS="NORMAL",
    )
    assert settings == Settings(
        backend=REDIS,
        chosen_by="OMNIACTORS_URL",
        prefix="{shop}:",
        lease=7.5,
        stream_limit=1000,
        entry_limit=65_536,
        token="s3cret",
        listen=Address("127.0.0.1", 8765),
        allowed_hosts=("omni.example", "omni_watch", "10.0.0.7", "[::1]"),
        grace=2.5,
        result_ttl=60.0,
        dedupe_window=0.0,
        synchronous="normal",
    )


def test_the_command_line_overrides_the_gateway_settings() -> None:
    settings = choose(OMNIACTORS_LISTEN="127.0.0.1:1", OMNIACTORS_TOKEN="old")
    assert settings.with_gateway(listen=None, token=None) == settings
    changed = settings.with_gateway(listen="127.0.0.1:2", token="new")
    assert (changed.listen, changed.token) == (Address("127.0.0.1", 2), "new")


def test_the_names_of_the_command_line_take_the_place_of_those_in_the_settings() -> None:
    settings = choose(OMNIACTORS_ALLOWED_HOSTS="a.example")
    assert settings.with_gateway(listen=None, token=None).allowed_hosts == ("a.example",)
    assert settings.with_gateway(listen=None, token=None, allowed_hosts=["b", "c", "b"]).allowed_hosts == ("b", "c")


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"STORAGE_BACKEND": "json"}, "STORAGE_BACKEND=json is not built yet: use sqlite:///FILE"),
        ({"STORAGE_BACKEND": "mongo"}, "STORAGE_BACKEND must be one of json, redis, sqlite, not 'mongo'"),
        ({"JSON_STORAGE_DIR": "data"}, "JSON_STORAGE_DIR is set, but JSON files are not built yet"),
        ({"REDIS_URL": "memory://"}, r"REDIS_URL must be redis://.*, and is memory://"),
        ({"STORAGE_BACKEND": "redis", "REDIS_URL": "sqlite:///a"}, "REDIS_URL must be redis://.*, and is sqlite:"),
        ({"OMNIACTORS_URL": "ftp://h"}, "OMNIACTORS_URL must begin with sqlite:///.* and is ftp://"),
        ({"OMNIACTORS_ALLOWED_HOSTS": "a.example:8000"}, "OMNIACTORS_ALLOWED_HOSTS must be host names without port"),
        ({"OMNIACTORS_ALLOWED_HOSTS": "http://a"}, "OMNIACTORS_ALLOWED_HOSTS must be host names without port"),
        ({"OMNIACTORS_ALLOWED_HOSTS": "*"}, "OMNIACTORS_ALLOWED_HOSTS must be host names without port"),
        ({"OMNIACTORS_GRACE": "soon"}, "OMNIACTORS_GRACE must be a number of seconds of at least 0, not 'soon'"),
        ({"OMNIACTORS_GRACE": "-1"}, "OMNIACTORS_GRACE must be"),
        ({"OMNIACTORS_RESULT_TTL": "nan"}, "OMNIACTORS_RESULT_TTL must be"),
        ({"OMNIACTORS_RESULT_TTL": "0"}, "OMNIACTORS_RESULT_TTL must be a number of seconds above 0, not '0'"),
        ({"OMNIACTORS_DEDUPE_WINDOW": "inf"}, "OMNIACTORS_DEDUPE_WINDOW must be"),
        ({"OMNIACTORS_SYNCHRONOUS": "off"}, "OMNIACTORS_SYNCHRONOUS must be one of full, normal, not 'off'"),
        ({"OMNIACTORS_PREFIX": "shop"}, "OMNIACTORS_PREFIX is for Redis.* sqlite:.*: give each system a file"),
        ({"OMNIACTORS_PREFIX": "a b", "REDIS_URL": "redis://h"}, "OMNIACTORS_PREFIX must be visible ASCII"),
        ({"OMNIACTORS_LEASE": "0.5"}, "OMNIACTORS_LEASE must be a number of seconds from 1 to 3600, not '0.5'"),
        ({"OMNIACTORS_LEASE": "3601"}, "OMNIACTORS_LEASE must be a number of seconds from 1 to 3600"),
        ({"OMNIACTORS_STREAM_LIMIT": "0"}, "OMNIACTORS_STREAM_LIMIT must be a whole number of at least 1, not '0'"),
        ({"OMNIACTORS_ENTRY_LIMIT": "16MB"}, "OMNIACTORS_ENTRY_LIMIT must be a whole number of at least 1"),
        ({"OMNIACTORS_LISTEN": "8765"}, "OMNIACTORS_LISTEN must be HOST:PORT"),
        ({"OMNIACTORS_GRACES": "1"}, "OMNIACTORS_GRACES is no setting; did you mean OMNIACTORS_GRACE?"),
        ({"OMNIACTORS_COLOUR": ""}, f"OMNIACTORS_COLOUR is no setting.*{', '.join(KNOWN)}"),
    ],
)
def test_a_bad_value_is_refused_with_what_is_allowed(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        choose(**environ)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"result_ttl": 0.0}, "result_ttl must be a number of seconds above 0"),
        ({"result_ttl": -1.0}, "result_ttl must be a number of seconds of at least 0, not -1.0"),
        ({"grace": math.nan}, "grace must be"),
        ({"dedupe_window": math.inf}, "dedupe_window must be"),
        ({"lease": math.nan}, "lease must be a number of seconds from 1 to 3600, not nan"),
        ({"lease": 0.0}, "lease must be"),
        ({"stream_limit": 0}, "stream_limit must be a whole number of at least 1, not 0"),
        ({"entry_limit": 1.5}, "entry_limit must be a whole number of at least 1, not 1.5"),
        ({"prefix": "shop"}, "a prefix is for Redis, and the store is memory://"),
    ],
)
def test_settings_made_by_hand_are_checked_too(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        Settings(backend=MemoryUrl(), **values)


def test_no_grace_and_no_window_are_allowed() -> None:
    settings = choose(OMNIACTORS_GRACE="0", OMNIACTORS_DEDUPE_WINDOW="0")
    assert (settings.grace, settings.dedupe_window) == (0.0, 0.0)


def test_an_unknown_setting_in_dotenv_is_refused_too() -> None:
    with pytest.raises(SettingsError, match="OMNIACTORS_TOKN is no setting; did you mean OMNIACTORS_TOKEN"):
        choose(dotenv="OMNIACTORS_TOKN=x")


# -- what is never shown --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environ",
    [
        {"OMNIACTORS_TOKEN": "hunter2 hunter2"},
        {"REDIS_URL": "redis://:hunter2@host:port"},
        {"REDIS_URL": "redis://:pass#hunter2@host"},
        {"REDIS_URL": "redis://:12?hunter2@host"},
        {"REDIS_URL": "redis://:12/hunter2@host"},
        {"REDIS_URL": "redis://:hunter2 x@host"},
        {"REDIS_URL": "redis://hunter2:@/0"},
        {"REDIS_URL": "redis://:hunter2@host/zero"},
        {"REDIS_URL": "redis://:hunter2@[host"},
        {"REDIS_URL": "redis://:hunter2@ho\u2100st"},
        {"REDIS_URL": "unix://me:hunter2@?db=0"},
        {"REDIS_URL": "unix:///tmp/redis.sock?db=x&password=hunter2"},
        {"OMNIACTORS_URL": "postgres://me:hunter2@host"},
        {"OMNIACTORS_URL": "hunter2"},
    ],
)
def test_no_error_shows_a_secret(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        choose(**environ)
    assert "hunter2" not in str(caught.value)


def test_a_bad_dotenv_line_is_told_by_its_number_alone() -> None:
    with pytest.raises(SettingsError, match=r"^\.env line 2 is not NAME=value$"):
        choose(dotenv="A=1\nhunter2\n")


def test_description_and_repr_hold_no_token() -> None:
    settings = choose(OMNIACTORS_TOKEN="hunter2", OMNIACTORS_SYNCHRONOUS="normal", OMNIACTORS_LISTEN="localhost:0")
    assert settings.describe() == (
        f"sqlite:///{DEFAULT.path} (from the default), listen localhost on a free port, with a token, "
        "synchronous normal"
    )
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://h", "redis://h:6379/0"),
        ("redis://me:hunter2@h:7000/3", "redis://h:7000/3"),
        ("rediss://:hunter2@h?ssl_cert_reqs=none&password=hunter2", "rediss://h:6379/0"),
        ("redis://hunter2@h/1?db=4", "redis://h:6379/4"),
        ("redis://:hunt%40er2%2F@[::1]:7000", "redis://[::1]:7000/0"),
        ("unix:///run/redis.sock?db=2&password=hunter2", "unix:///run/redis.sock?db=2"),
        ("unix://hunter2@/run/redis.sock", "unix:///run/redis.sock?db=0"),
        ("valkey://:hunter2@h", "valkey://h:6379/0"),
        ("valkeys://:hunter2@h", "valkeys://h:6379/0"),
    ],
)
def test_a_redis_url_is_shown_without_its_secrets(text: str, shown: str) -> None:
    settings = choose(text, OMNIACTORS_PREFIX="shop:")
    assert isinstance(settings.backend, RedisUrl)
    assert settings.backend.secret == text.replace("valkeys://", "rediss://").replace("valkey://", "redis://")
    assert str(settings.backend) == shown
    assert settings.describe() == f"{shown} (from the argument), prefix shop:"
    assert "hunt" not in repr(settings)


# -- forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("sqlite:///work.db", "/work/here/work.db"),
        ("sqlite:///../up.db", "/work/up.db"),
        ("sqlite:////srv/data.db", "/srv/data.db"),
        ("sqlite:///a%20b%3F.db", "/work/here/a b?.db"),
    ],
)
def test_a_file_is_made_absolute(text: str, path: str) -> None:
    assert parse_backend_url(text, folder=FOLDER) == SqliteUrl(Path(path))


@pytest.mark.parametrize(
    "text", ["sqlite://work.db", "sqlite:///", "sqlite:///a?mode=ro", "sqlite:///:memory:", "memory://x", "memory:", ""]
)
def test_a_url_of_bad_form_is_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        parse_backend_url(text, folder=FOLDER)


@given(st.text(st.characters(exclude_categories=["C"]), min_size=1))
def test_a_printed_url_names_the_same_file(name: str) -> None:
    url = SqliteUrl(Path("/srv") / f"x{name}".replace("/", "_"))
    assert parse_backend_url(str(url), folder=FOLDER) == url


@pytest.mark.parametrize(
    ("text", "address", "loopback"),
    [
        ("127.0.0.1:0", Address("127.0.0.1", 0), True),
        ("localhost:80", Address("localhost", 80), True),
        ("[::1]:8765", Address("::1", 8765), True),
        ("[fe80::1%eth0]:8765", Address("fe80::1%eth0", 8765), False),
        ("0.0.0.0:65535", Address("0.0.0.0", 65535), False),  # noqa: S104 -- parsed, not bound
        ("example.org:1", Address("example.org", 1), False),
    ],
)
def test_addresses(text: str, address: Address, loopback: bool) -> None:
    assert parse_address(text, "listen") == address
    assert address.is_loopback is loopback
    assert str(address) == text


@pytest.mark.parametrize("text", ["", "host", ":80", "host:", "host:65536", "host:-1", "::1:80", "a b:1", "[x]:1"])
def test_an_address_of_bad_form_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="must be HOST:PORT"):
        parse_address(text, "--listen")


def test_dotenv_forms() -> None:
    text = "\n# comment\nexport A=1\nB = 'two # words' # why\nC=\"x\"\nD=plain # why\nE=a#b\nF=\nA=2\n"
    assert parse_dotenv(text) == {"A": "2", "B": "two # words", "C": "x", "D": "plain", "E": "a#b", "F": ""}


# -- reading --------------------------------------------------------------------------------------


def test_reading_takes_the_environment_and_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("OMNIACTORS_GRACE=7\nOMNIACTORS_TOKEN=file\n")
    monkeypatch.setenv("OMNIACTORS_TOKEN", "shell")
    settings = read_settings(folder=tmp_path)
    assert (settings.grace, settings.token) == (7.0, "shell")
    assert settings.backend == SqliteUrl(tmp_path / ".omniactors/omniactors.db")


def test_reading_without_a_file_starts_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_settings("sqlite:///x.db").backend == SqliteUrl(tmp_path / "x.db")


def test_a_dotenv_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"\.env is not UTF-8"):
        read_settings(folder=tmp_path)


@pytest.mark.parametrize("options", ["?foo=1", "?protocol=3", "?socket_connect_timeout=abc", "?ssl_cert_reqs=none"])
def test_options_that_a_redis_url_cannot_have_are_refused_in_a_sentence(options: str) -> None:
    with pytest.raises(SettingsError, match=r"^the argument: ") as caught:
        OmniActors(f"redis://:s3cr3t@localhost:6379/0{options}")
    assert "s3cr3t" not in str(caught.value)
