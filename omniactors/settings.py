"""Settings rule: what a system runs with, from arguments, environment, `.env` and defaults, in this order.

Pure but for `read_settings`, which reads the environment and the file. No value is ever corrected
or replaced in silence: what is not allowed is a SettingsError that names the setting and what is.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
import re
from collections import ChainMap
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from omniactors.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Synchronous = Literal["full", "normal"]

DEFAULT_FILE = ".omniactors/omniactors.db"
"""The embedded store, relative to the working directory."""

DAY = 86_400.0

MAX_PORT = 65_535
DEFAULT_REDIS_PORT = 6379

DEFAULT_REDIS = "redis://localhost:6379"
"""The server of STORAGE_BACKEND=redis without a REDIS_URL."""

STREAM_LIMIT = 10_000_000
"""Events that one stream may hold: far above any healthy backlog, some gigabytes of small events."""

ENTRY_LIMIT = 16 * 1024 * 1024
"""Bytes of one event: what is larger belongs into a file store, with its address in the event."""

LEASE = 15.0
LEASE_RANGE = (1.0, 3600.0)

KNOWN = (
    "OMNIACTORS_ALLOWED_HOSTS",
    "OMNIACTORS_DEDUPE_WINDOW",
    "OMNIACTORS_ENTRY_LIMIT",
    "OMNIACTORS_GRACE",
    "OMNIACTORS_LEASE",
    "OMNIACTORS_LISTEN",
    "OMNIACTORS_PREFIX",
    "OMNIACTORS_RESULT_TTL",
    "OMNIACTORS_STREAM_LIMIT",
    "OMNIACTORS_SYNCHRONOUS",
    "OMNIACTORS_TOKEN",
    "OMNIACTORS_URL",
)
"""Every OMNIACTORS_ variable there is; any other is refused."""

STORES = ("json", "redis", "sqlite")
"""What STORAGE_BACKEND may name."""

_REDIS_SCHEMES = {"redis": "redis", "rediss": "rediss", "unix": "unix", "valkey": "redis", "valkeys": "rediss"}
"""What each scheme is to the client: Valkey speaks the protocol of Redis."""

_REDIS_FORM = "redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE], with %-signs for what is special in a password"

_NO_PREFIX = "give each system a file of its own instead"
_INSTEAD = "use sqlite:///FILE, which several processes of one machine share, redis://HOST, or memory://"
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?\.?")
_DOTENV_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")


@dataclass(frozen=True)
class MemoryUrl:
    """A store in the memory of this process, gone with it."""

    def __str__(self) -> str:
        return "memory://"


@dataclass(frozen=True)
class SqliteUrl:
    """A store in the file at `path`, which is absolute."""

    path: Path

    def __str__(self) -> str:
        name = re.sub("[%?#]", lambda match: quote(match[0]), str(self.path))
        return f"sqlite:///{name}"


@dataclass(frozen=True)
class RedisUrl:
    """A Redis or Valkey server. `secret` is its whole URL, password included: for the connection and for nobody else.

    The scheme of `secret` is one of Redis' own (redis, rediss, unix); `shown` is the URL without
    user, password and options, as it may be printed.
    """

    secret: str = field(repr=False)
    shown: str

    def __str__(self) -> str:
        return self.shown


BackendUrl = MemoryUrl | SqliteUrl | RedisUrl


@dataclass(frozen=True)
class Address:
    """A host and a port to listen on; port 0 is any free one. IPv6 hosts are held without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True)
class Settings:
    """What a system runs with. Times are in seconds.

    `chosen_by` names the setting that chose the backend. `allowed_hosts` are names under which the
    gateway answers beside its own addresses: a reverse proxy's, a container's. `grace` is how long
    running tasks may take to finish at a stop, `result_ttl` how long a result is kept (above 0),
    `dedupe_window` how long a given event id is remembered. `stream_limit` is the number of events that
    one stream may hold, `entry_limit` the number of bytes that one event may have as JSON.
    `synchronous` is SQLite's: "full" survives a power cut, "normal" a crash of the process. `prefix`
    and `lease` are Redis': what all its keys begin with, and after how long without a sign of life a
    process counts as dead. Raises SettingsError for what is not allowed.
    """

    backend: BackendUrl
    chosen_by: str = "the default"
    token: str | None = field(default=None, repr=False)
    listen: Address | None = None
    allowed_hosts: tuple[str, ...] = ()
    grace: float = 30.0
    result_ttl: float = DAY
    dedupe_window: float = DAY
    stream_limit: int = STREAM_LIMIT
    entry_limit: int = ENTRY_LIMIT
    synchronous: Synchronous = "full"
    prefix: str = ""
    lease: float = LEASE

    def __post_init__(self) -> None:
        """Check times, limits and the prefix."""
        for name in ("grace", "result_ttl", "dedupe_window"):
            seconds = getattr(self, name)
            if not math.isfinite(seconds) or seconds < 0:
                raise SettingsError(f"{name} must be a number of seconds of at least 0, not {seconds!r}")
        if self.result_ttl == 0:
            raise SettingsError("result_ttl must be a number of seconds above 0: a result must last until it is read")
        for name in ("stream_limit", "entry_limit"):
            limit = getattr(self, name)
            if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
                raise SettingsError(f"{name} must be a whole number of at least 1, not {limit!r}")
        parse_hosts(self.allowed_hosts, "allowed_hosts")
        least, most = LEASE_RANGE
        if not least <= self.lease <= most:
            raise SettingsError(f"lease must be a number of seconds from {least:g} to {most:g}, not {self.lease!r}")
        if self.prefix and not isinstance(self.backend, RedisUrl):
            raise SettingsError(f"a prefix is for Redis, and the store is {self.backend}: {_NO_PREFIX}")

    def describe(self) -> str:
        """One line: the store with its absolute path, who chose it, and what is not the default; no secrets."""
        parts = [f"{self.backend} (from {self.chosen_by})"]
        if self.listen is not None:
            is_any = self.listen.port == 0
            parts.append(f"listen {self.listen.host} on a free port" if is_any else f"listen {self.listen}")
        if self.allowed_hosts:
            parts.append(f"as {' and '.join(self.allowed_hosts)} too")
        if self.token is not None:
            parts.append("with a token")
        if self.synchronous != "full":
            parts.append(f"synchronous {self.synchronous}")
        if self.prefix:
            parts.append(f"prefix {self.prefix}")
        return ", ".join(parts)

    def with_gateway(
        self, *, listen: str | None, token: str | None, allowed_hosts: Sequence[str] | None = None
    ) -> Settings:
        """These settings with what the command line said about the gateway, where it said something."""
        return replace(
            self,
            listen=self.listen if listen is None else parse_address(listen, "--listen"),
            token=self.token if token is None else _token(token, "--token"),
            allowed_hosts=self.allowed_hosts if allowed_hosts is None else parse_hosts(allowed_hosts, "--allowed-host"),
        )


def read_settings(url: str | None = None, *, folder: Path | None = None) -> Settings:
    """The settings of a process that runs in `folder` (default: the working directory).

    Reads the environment and `.env` in that folder; raises SettingsError.
    """
    folder = Path.cwd() if folder is None else folder
    try:
        data = (folder / ".env").read_bytes()
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise SettingsError(f"{folder / '.env'} cannot be read: {error}") from error
    text = _dotenv_text(data, folder / ".env")
    return choose_settings(url, environ=os.environ, dotenv=text, folder=folder)


def _dotenv_text(data: bytes, file: Path) -> str:
    """The text of a `.env` file, with a byte order mark or without one; raises SettingsError."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data:
        raise SettingsError(f"{file} is not UTF-8 but UTF-16, or no text at all: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Not its bytes: they may be a secret.
        line = data[: error.start].count(b"\n") + 1
        raise SettingsError(f"{file} is not UTF-8 in line {line}: save it as UTF-8") from None


def choose_settings(url: str | None, *, environ: Mapping[str, str], dotenv: str, folder: Path) -> Settings:
    """The settings that `url` (the argument), the environment and the text of `.env` give together.

    Relative paths start at `folder`. An empty value counts as unset. Raises SettingsError.
    """
    merged = ChainMap(dict(environ), parse_dotenv(dotenv))
    _refuse_unknown(merged)
    values = {name: value.strip() for name, value in merged.items() if value.strip()}
    backend, chosen_by = _backend(url, values, folder)
    if "OMNIACTORS_PREFIX" in values and not isinstance(backend, RedisUrl):
        raise SettingsError(f"OMNIACTORS_PREFIX is for Redis, and the store is {backend}: {_NO_PREFIX}")
    listen = values.get("OMNIACTORS_LISTEN")
    token = values.get("OMNIACTORS_TOKEN")
    hosts = values.get("OMNIACTORS_ALLOWED_HOSTS", "")
    return Settings(
        backend=backend,
        chosen_by=chosen_by,
        token=None if token is None else _token(token, "OMNIACTORS_TOKEN"),
        listen=None if listen is None else parse_address(listen, "OMNIACTORS_LISTEN"),
        allowed_hosts=parse_hosts(re.split("[, ]+", hosts), "OMNIACTORS_ALLOWED_HOSTS"),
        grace=_seconds(values, "OMNIACTORS_GRACE", 30.0),
        result_ttl=_seconds_above_zero(values, "OMNIACTORS_RESULT_TTL", DAY),
        dedupe_window=_seconds(values, "OMNIACTORS_DEDUPE_WINDOW", DAY),
        stream_limit=_count(values, "OMNIACTORS_STREAM_LIMIT", STREAM_LIMIT),
        entry_limit=_count(values, "OMNIACTORS_ENTRY_LIMIT", ENTRY_LIMIT),
        synchronous=_synchronous(values.get("OMNIACTORS_SYNCHRONOUS", "full")),
        prefix=_prefix(values.get("OMNIACTORS_PREFIX", "")),
        lease=_lease(values),
    )


def parse_dotenv(text: str) -> dict[str, str]:
    """The variables in the text of a `.env` file; a later line wins.

    Blank lines, comments, `export` and quotes around a value are understood; nothing is expanded.
    Raises SettingsError, with the number of the line but not its text, which may be a secret.
    """
    values = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _DOTENV_LINE.fullmatch(line)
        if match is None:
            raise SettingsError(f".env line {number} is not NAME=value")
        values[match[1]] = _unquote(match[2])
    return values


def parse_backend_url(text: str, *, folder: Path, setting: str = "the URL") -> BackendUrl:
    """The store that `text` names; relative files start at `folder`. Raises SettingsError."""
    try:
        parts = urlsplit(text)
    except ValueError:
        # Its own words may hold the password.
        raise SettingsError(f"{setting} is no URL") from None
    match parts.scheme:
        case "memory":
            if text != "memory://":
                raise SettingsError(f"{setting}: a store in memory is written memory://, not {text!r}")
            return MemoryUrl()
        case "sqlite":
            return _sqlite_url(text, folder, setting)
        case scheme if scheme in _REDIS_SCHEMES:
            return _redis_url(text, parts, setting)
    # What is no URL may still hold a password, so only its scheme is shown.
    shown = f"{parts.scheme}://" if "://" in text else "a value without scheme"
    raise SettingsError(f"{setting} must begin with sqlite:///, memory:// or redis://, and is {shown}")


def parse_address(text: str, setting: str) -> Address:
    """HOST:PORT, with an IPv6 host in brackets, and its zone if it has one; raises SettingsError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.~-]+)?)\]|([^\s:/\[\]]+)):(\d{1,5})", text)
    port = int(match[3]) if match else -1
    if match is None or not 0 <= port <= MAX_PORT:
        raise SettingsError(f"{setting} must be HOST:PORT with a port from 0 to 65535, not {text!r}")
    return Address((match[1] or match[2]).replace("%25", "%"), port)


def parse_hosts(names: Sequence[str], setting: str) -> tuple[str, ...]:
    """Host names or addresses, without port; raises SettingsError."""
    if isinstance(names, str):
        raise SettingsError(f"{setting} must be a list of names, not the text {names!r}")
    kept = [name.strip() for name in names if name.strip()]
    for name in kept:
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            if not _HOST.fullmatch(name):
                example = "omni.example.com"
                raise SettingsError(f"{setting} must be host names without port, as {example}, not {name!r}") from None
    return tuple(dict.fromkeys(kept))


def _backend(url: str | None, values: Mapping[str, str], folder: Path) -> tuple[BackendUrl, str]:
    """The store, and who chose it: argument, OMNIACTORS_URL, STORAGE_BACKEND, REDIS_URL, default."""
    if url is not None:
        return parse_backend_url(url, folder=folder), "the argument"
    if named := values.get("OMNIACTORS_URL"):
        return parse_backend_url(named, folder=folder, setting="OMNIACTORS_URL"), "OMNIACTORS_URL"
    default = SqliteUrl(_absolute(folder, DEFAULT_FILE))
    match values.get("STORAGE_BACKEND"):
        case "sqlite":
            return default, "STORAGE_BACKEND"
        case "json":
            raise SettingsError(f"STORAGE_BACKEND=json is not built yet: {_INSTEAD}")
        case "redis":
            return _redis_of(values.get("REDIS_URL", DEFAULT_REDIS), folder), "STORAGE_BACKEND"
        case str(other):
            raise SettingsError(f"STORAGE_BACKEND must be one of {', '.join(STORES)}, not {other!r}")
    if "JSON_STORAGE_DIR" in values:
        raise SettingsError(f"JSON_STORAGE_DIR is set, but JSON files are not built yet: {_INSTEAD}")
    if redis := values.get("REDIS_URL"):
        return _redis_of(redis, folder), "REDIS_URL"
    return default, "the default"


def _redis_of(text: str, folder: Path) -> BackendUrl:
    backend = parse_backend_url(text, folder=folder, setting="REDIS_URL")
    if not isinstance(backend, RedisUrl):
        raise SettingsError(f"REDIS_URL must be {_REDIS_FORM}, and is {backend}")
    return backend


def _sqlite_url(text: str, folder: Path, setting: str) -> SqliteUrl:
    match = re.fullmatch(r"sqlite:///([^?#]+)", text)
    if match is None:
        raise SettingsError(f"{setting} must be sqlite:///FILE or sqlite:////ABSOLUTE/FILE, not {text!r}")
    name = unquote(match[1])
    if name == ":memory:" or "\0" in name:
        raise SettingsError(f"{setting}: {text!r} names no file; a store in memory is written memory://")
    return SqliteUrl(_absolute(folder, name))


def _redis_url(text: str, parts: SplitResult, setting: str) -> RedisUrl:
    """The server, checked; no error shows any of the text, which may hold a password in any place."""
    options = parse_qsl(parts.query, keep_blank_values=True)
    is_visible = re.fullmatch(r"[!-~]+", text) is not None
    if not is_visible or parts.fragment or not re.fullmatch(r"([a-z_]+=[^&=]*&?)*", parts.query):
        raise SettingsError(f"{setting} must be {_REDIS_FORM}: a blank, #, ? or a letter beyond ASCII is in its way")
    scheme = _REDIS_SCHEMES[parts.scheme]
    secret = scheme + text[len(parts.scheme) :]
    database = dict(options).get("db", "" if scheme == "unix" else parts.path.removeprefix("/")) or "0"
    if not re.fullmatch(r"[0-9]{1,9}", database):
        raise SettingsError(f"{setting} must be {_REDIS_FORM}: its database is no number")
    if scheme == "unix":
        if not parts.path.strip("/") or parts.netloc.rpartition("@")[2]:
            raise SettingsError(f"{setting} must be unix:///ABSOLUTE/PATH of a socket")
        return RedisUrl(secret, f"unix://{parts.path}?db={database}")
    return RedisUrl(secret, f"{parts.scheme}://{_redis_host(parts, setting)}/{database}")


def _redis_host(parts: SplitResult, setting: str) -> str:
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        raise SettingsError(f"{setting} must be {_REDIS_FORM}: its port is no number from 0 to 65535") from None
    if not host:
        raise SettingsError(f"{setting} must be {_REDIS_FORM}: it names no host")
    return str(Address(host, port or DEFAULT_REDIS_PORT))


def _absolute(folder: Path, name: str) -> Path:
    # normpath, not resolve(): it asks no file system, and a link keeps the name its owner gave it.
    return Path(os.path.normpath(folder / name))


def _refuse_unknown(values: Mapping[str, str]) -> None:
    for name in sorted(values):
        if name.startswith("OMNIACTORS_") and name not in KNOWN:
            close = difflib.get_close_matches(name, KNOWN, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise SettingsError(f"{name} is no setting; {hint}There are {', '.join(KNOWN)}")


def _seconds(values: Mapping[str, str], setting: str, default: float) -> float:
    text = values.get(setting)
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise SettingsError(f"{setting} must be a number of seconds of at least 0, not {text!r}")
    return seconds


def _seconds_above_zero(values: Mapping[str, str], setting: str, default: float) -> float:
    """As `_seconds`; a result that is kept for no time could never be waited for."""
    seconds = _seconds(values, setting, default)
    if seconds == 0:
        raise SettingsError(f"{setting} must be a number of seconds above 0, not {values[setting]!r}")
    return seconds


def _lease(values: Mapping[str, str]) -> float:
    seconds = _seconds(values, "OMNIACTORS_LEASE", LEASE)
    least, most = LEASE_RANGE
    if not least <= seconds <= most:
        allowed = f"a number of seconds from {least:g} to {most:g}"
        raise SettingsError(f"OMNIACTORS_LEASE must be {allowed}, not {values['OMNIACTORS_LEASE']!r}")
    return seconds


def _count(values: Mapping[str, str], setting: str, default: int) -> int:
    text = values.get(setting, str(default))
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < 1:
        raise SettingsError(f"{setting} must be a whole number of at least 1, not {text!r}")
    return int(text)


def _prefix(text: str) -> str:
    """What all keys begin with; it may hold a hash tag of Redis Cluster."""
    if not all("!" <= char <= "~" for char in text):
        raise SettingsError(f"OMNIACTORS_PREFIX must be visible ASCII characters without blanks, not {text!r}")
    return text


def _synchronous(text: str) -> Synchronous:
    for allowed in get_args(Synchronous):
        if text.lower() == allowed:
            return "full" if allowed == "full" else "normal"
    raise SettingsError(f"OMNIACTORS_SYNCHRONOUS must be one of {', '.join(get_args(Synchronous))}, not {text!r}")


def _token(text: str, setting: str) -> str:
    """The token; it travels in an HTTP header, so it is visible ASCII. Its value is never shown."""
    if not text or not all("!" <= char <= "~" for char in text):
        raise SettingsError(f"{setting} must be visible ASCII characters without blanks")
    return text


def _unquote(value: str) -> str:
    for mark in ("'", '"'):
        if value.startswith(mark):
            end = value.find(mark, 1)
            return value[1:end] if end > 0 else value
    return re.sub(r"\s+#.*", "", value)
