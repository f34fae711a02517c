"""`omniactors watch`: the live events of a running system, from its gateway."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode, urlsplit

import msgspec
import trio
import typer
from rich.text import Text
from trio_websocket import ConnectionClosed, ConnectionRejected, HandshakeError, open_websocket_url

from omniactors.cli.exits import CommandError, ExitCode
from omniactors.cli.output import Format, FormatOption, notice, one_line, print_json, safe, stdout
from omniactors.cli.session import with_system
from omniactors.settings import Settings, read_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_websocket import WebSocketConnection

    from omniactors import OmniActors

MAX_MESSAGE = 64 * 1024 * 1024
"""Bytes of one frame: the gateway batches up to 64 KiB, but one event alone may be larger."""

CONNECT_SECONDS = 10.0
HTTP_UNAUTHORIZED = 401
TYPE_WIDTH = 20

_STYLES = {
    "completed": "green",
    "started": "cyan",
    "retried": "yellow",
    "restarted": "yellow",
    "failed": "red",
    "crashed": "red",
    "dead_lettered": "bold red",
    "gave_up": "bold red",
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


def watch(
    types: Annotated[
        list[str] | None, typer.Option("--types", "-t", metavar="PATTERN", help="Only these, as task.*; repeatable.")
    ] = None,
    *,
    run: Annotated[str | None, typer.Option(metavar="ID", help="Only the events of this run.")] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="The gateway; default: the one that the store names.")
    ] = None,
    token: Annotated[str | None, typer.Option(metavar="T", help="The gateway's token.")] = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Show the live events of a running system; --format json writes one document a line."""
    settings = read_settings().with_gateway(listen=None, token=token)
    gateway = url or with_system(_find_gateway)
    trio.run(_follow, _address(gateway, types or [">"], run), settings, output)


async def _find_gateway(omni: OmniActors) -> str:
    """The gateway of the runtime that started last; raises CommandError when none has one."""
    runtimes = sorted(await omni.runtimes(), key=lambda runtime: runtime.started_at)
    gateways = [runtime.gateway for runtime in runtimes if runtime.gateway]
    if not gateways:
        raise CommandError(
            "no running system was found in this store; start one with: omniactors run FILE_OR_MODULE",
            ExitCode.UNAVAILABLE,
        )
    return gateways[-1]


def _address(gateway: str, types: Sequence[str], run: str | None) -> str:
    """The WebSocket that a gateway's URL leads to; raises CommandError."""
    parts = urlsplit(gateway)
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.netloc:
        raise CommandError(f"--url must be http://HOST:PORT or https://HOST:PORT, not {gateway!r}", ExitCode.USAGE)
    query = {"types": ",".join(types)} | ({"run": run} if run else {})
    return f"{scheme}://{parts.netloc}/ws?{urlencode(query)}"


async def _follow(address: str, settings: Settings, output: Format) -> None:
    """Print events until the gateway says good-bye; raises CommandError when it cannot be reached or vanishes."""
    headers = [(b"authorization", b"Bearer " + settings.token.encode())] if settings.token else None
    host = urlsplit(address).netloc
    try:
        async with open_websocket_url(
            address, extra_headers=headers, max_message_size=MAX_MESSAGE, connect_timeout=CONNECT_SECONDS
        ) as socket:
            notice(f"watching {host}")
            await _print_frames(socket, output)
    except ConnectionRejected as refused:
        why = "it wants another token" if refused.status_code == HTTP_UNAUTHORIZED else f"status {refused.status_code}"
        raise CommandError(f"the gateway at {host} refused: {why}", ExitCode.UNAVAILABLE) from refused
    except (OSError, HandshakeError, trio.TooSlowError) as error:
        raise CommandError(f"the gateway at {host} cannot be reached", ExitCode.UNAVAILABLE) from error
    except ConnectionClosed as closed:
        reason = (closed.reason.reason if closed.reason else None) or "no reason given"
        raise CommandError(f"the gateway at {host} went away: {reason}", ExitCode.UNAVAILABLE) from closed


async def _print_frames(socket: WebSocketConnection, output: Format) -> None:
    while True:
        frame = _decoder.decode(await socket.get_message())
        match frame.t:
            case "ev":
                for event in frame.e:
                    _print_event(event, output)
            case "gap":
                _print_event(WatchedEvent(event_type="bus.gap", data={"lost": frame.lost, "why": frame.why}), output)
            case "err":
                raise CommandError(f"the gateway refused: {frame.msg}", ExitCode.USAGE)
            case "end" | "bye":
                notice(f"the stream ended: {frame.why}")
                return


def _print_event(event: WatchedEvent, output: Format) -> None:
    if output is Format.JSON:
        print_json(event)
        return
    when = datetime.fromtimestamp(event.ts, UTC).astimezone() if event.ts else datetime.now(UTC).astimezone()
    style = _STYLES.get(event.event_type.rpartition(".")[2], "")
    line = Text.assemble(
        (f"{when:%H:%M:%S}.{when.microsecond // 1000:03} ", "dim"),
        (f"{safe(event.event_type):<{TYPE_WIDTH}} ", style),
        one_line(event.data),
    )
    stdout().print(line, no_wrap=True, overflow="ellipsis")
