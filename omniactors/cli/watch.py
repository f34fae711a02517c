"""`omniactors watch`: the live events of a running system, from its gateway."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode, urlsplit

import msgspec
import trio
import typer
from rich.text import Text
from trio_websocket import ConnectionClosed, ConnectionRejected, HandshakeError, open_websocket

from omniactors.cli.exits import CommandError, ExitCode
from omniactors.cli.following import Followers, Gateway, Refused
from omniactors.cli.output import Format, FormatOption, notice, one_line, print_json, safe, stdout
from omniactors.cli.session import ask_system
from omniactors.settings import read_settings

if TYPE_CHECKING:
    from trio_websocket import WebSocketConnection

MAX_MESSAGE = 64 * 1024 * 1024
"""Bytes of one frame: the gateway batches up to 64 KiB, but one event alone may be larger."""

CONNECT_SECONDS = 10.0
HTTP_UNAUTHORIZED = 401
TYPE_WIDTH = 20
PID_WIDTH = 7

_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}

_STYLES = {
    "completed": "green",
    "started": "cyan",
    "retried": "yellow",
    "restarted": "yellow",
    "failed": "red",
    "crashed": "red",
    "dead_lettered": "bold red",
    "gave_up": "bold red",
    "down": "bold red",
    "gap": "bold yellow",
}


class WatchedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event as the gateway sends it; `ts` is in Unix seconds, `o` its offset."""

    event_type: str
    ts: float = 0.0
    o: int = 0
    run_id: str = ""
    source: str = ""
    data: Any = None


class _Frame(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of any frame that matter here; `t` says which it is."""

    t: str
    e: list[WatchedEvent] = []
    lost: Any = None
    why: str = ""
    msg: str = ""


_decoder = msgspec.json.Decoder(_Frame)


class _Shown(WatchedEvent, frozen=True, kw_only=True):
    """An event in a JSON document: `runtime` is the consumer id of the runtime that it is from, when that is known."""

    runtime: str | None = None


@dataclass(frozen=True)
class _Asked:
    """What the user wants to see, and how; `query` and `token` are for the gateway."""

    query: str
    token: str | None
    output: Format


def watch(
    types: Annotated[
        list[str] | None, typer.Option("--types", "-t", metavar="PATTERN", help="Only these, as task.*; repeatable.")
    ] = None,
    *,
    run: Annotated[str | None, typer.Option(metavar="ID", help="Only the events of this run.")] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="One gateway; default: every running one that the store names.")
    ] = None,
    token: Annotated[str | None, typer.Option(metavar="T", help="The gateway's token.")] = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Show the live events of a running system; --format json writes one document a line."""
    settings = read_settings().with_gateway(listen=None, token=token)
    # trio-websocket leaves the socket of a connection that the other side has closed to the garbage collector.
    warnings.filterwarnings("ignore", "unclosed <socket", ResourceWarning)
    query = {"types": ",".join(types or [">"])} | ({"run": run} if run else {})
    asked = _Asked(urlencode(query), settings.token, output)
    if url is None:
        ask_system(lambda omni: Followers(omni, partial(_follow, asked)).run())
    else:
        trio.run(_follow, asked, Gateway(url))


@dataclass(frozen=True)
class Place:
    """Where a WebSocket is: what the name resolver, the port and the request line want."""

    host: str
    port: int
    is_tls: bool

    @classmethod
    def of(cls, gateway: Gateway) -> Place:
        """Where a gateway's URL leads to; raises CommandError."""
        try:
            parts = urlsplit(gateway.url)
            scheme, host, port = parts.scheme, parts.hostname, parts.port
        except ValueError:  # brackets that are not closed, a port that is none
            scheme, host, port = "", None, None
        if not host or port == 0 or scheme not in _PORTS:
            why = f"--url must be http://HOST:PORT or https://HOST:PORT, not {gateway.url!r}"
            raise CommandError(why, ExitCode.USAGE)
        # In a URL a zone stands behind %25 (RFC 6874), for a resolver behind %.
        return cls(host.replace("%25", "%"), port or _PORTS[scheme], scheme in {"https", "wss"})


async def _follow(asked: _Asked, gateway: Gateway) -> None:
    """Print events until the gateway says good-bye; raises CommandError when it cannot be reached or vanishes."""
    headers = [(b"authorization", b"Bearer " + asked.token.encode())] if asked.token else None
    place = Place.of(gateway)
    at = f"the gateway at {gateway}"
    try:
        async with open_websocket(
            place.host,
            place.port,
            f"/ws?{asked.query}",
            use_ssl=place.is_tls,
            extra_headers=headers,
            max_message_size=MAX_MESSAGE,
            connect_timeout=CONNECT_SECONDS,
        ) as socket:
            notice(f"watching {gateway}")
            why = await _print_frames(socket, gateway, asked.output)
            notice(f"the stream ended: {why}" + (f", {gateway}" if gateway.pid else ""))
    except ConnectionRejected as refused:
        if refused.status_code == HTTP_UNAUTHORIZED:
            raise Refused(f"{at} refused: it wants another token", ExitCode.UNAVAILABLE) from refused
        raise CommandError(f"{at} refused: status {refused.status_code}", ExitCode.UNAVAILABLE) from refused
    except (OSError, HandshakeError, trio.TooSlowError) as error:
        raise CommandError(f"{at} cannot be reached", ExitCode.UNAVAILABLE) from error
    except ConnectionClosed as closed:
        reason = (closed.reason.reason if closed.reason else None) or "no reason given"
        raise CommandError(f"{at} went away: {reason}", ExitCode.UNAVAILABLE) from closed


async def _print_frames(socket: WebSocketConnection, gateway: Gateway, output: Format) -> str:
    """Print what comes until the gateway says good-bye; returns why it does."""
    while True:
        frame = _decoder.decode(await socket.get_message())
        match frame.t:
            case "ev":
                for event in frame.e:
                    _print_event(event, gateway, output)
            case "gap":
                gap = WatchedEvent(event_type="bus.gap", data={"lost": frame.lost, "why": frame.why})
                _print_event(gap, gateway, output)
            case "err":
                raise Refused(f"the gateway at {gateway} refused: {frame.msg}", ExitCode.USAGE)
            case "end" | "bye":
                return frame.why


def _print_event(event: WatchedEvent, gateway: Gateway, output: Format) -> None:
    if output is Format.JSON:
        print_json(_Shown(**msgspec.structs.asdict(event), runtime=gateway.runtime))
        return
    when = datetime.fromtimestamp(event.ts, UTC).astimezone() if event.ts else datetime.now(UTC).astimezone()
    style = _STYLES.get(event.event_type.rpartition(".")[2], "")
    line = Text.assemble(
        (f"{when:%H:%M:%S}.{when.microsecond // 1000:03} ", "dim"),
        (f"{gateway.pid:<{PID_WIDTH}} " if gateway.pid else "", "dim"),
        (f"{safe(event.event_type):<{TYPE_WIDTH}} ", style),
        one_line(event.data),
    )
    stdout().print(line, no_wrap=True, overflow="ellipsis")
