"""One watcher: a WebSocket connection and its subscriptions.

One task writes, one reads, one pumps each subscription. A pump hands its batch to the writer and
takes the next when that one is on its way, so a watcher that stalls holds up its own pumps; the
queues of its subscriptions then drop, count, and tell it when it reads again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import trio
from trio_websocket import ConnectionClosed
from wsproto.utilities import ProtocolError

from omniactors.events.event import position
from omniactors.gateway import protocol
from omniactors.gateway.handover import CLOSE_DEADLINE, VANISHED
from omniactors.gateway.protocol import Bye, Err, FrameError, write_frame
from omniactors.gateway.wire import ClientGone

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trio_websocket import WebSocketConnection

    from omniactors.events.bus import EventBus
    from omniactors.events.event import Event
    from omniactors.events.subscription import Subscription
    from omniactors.gateway.access import Policy
    from omniactors.gateway.config import GatewayConfig
    from omniactors.gateway.protocol import EventCache, Id, ServerFrame, Sub

RETRY_AFTER_STOP = 1.0
"""Seconds after which a watcher may look whether a gateway that stopped is back."""


class WatcherGone(Exception):
    """The watcher took nothing, or said nothing, for so long that the connection is given up."""


_ORDINARY_ENDS = (
    ConnectionClosed,
    ProtocolError,
    WatcherGone,
    ClientGone,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
)


@dataclass(eq=False)
class _Flow:
    """One subscription of a watcher. `told` is the newest offset that the watcher has been told, or was not to be."""

    frame: Sub
    subscription: Subscription
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    told: int = 0
    idle: bool = False

    @property
    def s(self) -> Id:
        """What the watcher calls it."""
        return self.frame.s

    @property
    def position(self) -> int:
        """Where the watcher would resume: a batch in the pump's hand is not told yet."""
        return self.subscription.position if self.idle else self.told


class Watcher:
    """Speaks the protocol with one client until it leaves or `stopping` is set."""

    def __init__(
        self,
        socket: WebSocketConnection,
        bus: EventBus,
        *,
        cache: EventCache,
        config: GatewayConfig,
        policy: Policy,
        is_trusted: bool,
        stopping: trio.Event,
    ) -> None:
        self._socket = socket
        self._bus = bus
        self._cache = cache
        self._config = config
        self._policy = policy
        self._is_trusted = is_trusted
        self._stopping = stopping
        self._start = position(bus.epoch, bus.head)
        self._flows: dict[Id, _Flow] = {}
        self._turn = trio.Lock()
        self._writing = trio.Lock()
        self._outbox, self._frames = trio.open_memory_channel[str | Bye](0)

    async def run(self, first: Sub | None, begun: Subscription | None) -> None:
        """Serve the client. Raises WatcherGone, or ConnectionClosed when the client left.

        `first` is the subscription of its query: `begun`, or not begun before a `hello` brings the
        token. Then it counts from the handshake on all the same.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, nursery.cancel_scope)
                nursery.start_soon(self._say_bye)
                if self._is_trusted or await self._hears_hello():
                    await self._send(self._welcome())
                    nursery.start_soon(self._beat)
                    if first is not None and begun is not None:
                        await self._start_flow(nursery, first, begun)
                    elif first is not None:
                        await self._subscribe(first, nursery, since=None if first.run else self._start)
                    await self._read(nursery)
        finally:
            for flow in self._flows.values():
                flow.subscription.close()

    async def _read(self, nursery: trio.Nursery) -> None:
        while True:
            try:
                message = await self._socket.get_message()
            except ConnectionClosed:
                with trio.move_on_after(CLOSE_DEADLINE):  # behind half a frame nothing more can be said
                    await self._writing.acquire()
                raise
            try:
                await self._handle(protocol.parse_frame(message), nursery)
            except FrameError as error:
                await self._send(Err(id=error.id, code="bad-frame", msg=str(error)))

    async def _handle(self, frame: protocol.FromClient, nursery: trio.Nursery) -> None:
        match frame:
            case protocol.Sub():
                await self._subscribe(frame, nursery)
            case protocol.Unsub():
                await self._unsubscribe(frame)
            case protocol.ClientPing():
                await self._send(protocol.Pong(id=frame.id))
            case _:
                pass  # a hello that nobody asked for, or a pong: both are fine

    async def _hears_hello(self) -> bool:
        """Whether a `hello` with the token came in time; if not, the watcher has been told."""
        with trio.move_on_after(self._config.hello_deadline):
            try:
                frame = protocol.parse_frame(await self._socket.get_message())
            except FrameError:
                frame = None
            if isinstance(frame, protocol.Hello) and self._policy.accepts_token(frame.token):
                return True
            await self._bye(protocol.BAD_TOKEN, "the first frame must be a hello with a valid token", retry=None)
            return False
        await self._bye(protocol.NO_HELLO, "no hello with a token came in time", retry=None)
        return False

    def _welcome(self) -> protocol.Welcome:
        config = self._config
        limits = protocol.Limits(
            message=config.max_message,
            subscriptions=config.max_subscriptions,
            patterns=config.max_patterns,
            text=config.max_text,
            batch=config.batch_events,
            queue=config.max_queue,
        )
        return protocol.Welcome(
            epoch=self._bus.epoch, head=self._bus.head, now=time.time(), ping=config.ping_interval, limits=limits
        )

    # -- subscriptions -----------------------------------------------------------------------------

    async def _subscribe(self, frame: Sub, nursery: trio.Nursery, since: str | None = None) -> None:
        if frame.s in self._flows:
            await self._refuse(frame.id, "duplicate", f"subscription {protocol.shown(frame.s)} exists already")
            return
        try:
            check_room((*(flow.frame for flow in self._flows.values()), frame), self._config)
        except FrameError as error:
            await self._refuse(frame.id, "limit", str(error), retry=True)
            return
        try:
            subscription = subscribe(self._bus, frame, since=since, config=self._config, others=len(self._flows))
        except ValueError as error:
            await self._refuse(frame.id, "bad-subscription", str(error))
        else:
            await self._start_flow(nursery, frame, subscription)

    async def _start_flow(self, nursery: trio.Nursery, frame: Sub, subscription: Subscription) -> None:
        flow = self._flows[frame.s] = _Flow(frame, subscription, told=subscription.start)
        replay = self._bus.head - subscription.start if subscription.replaying else 0
        await self._send(
            protocol.Subbed(
                id=frame.id,
                s=frame.s,
                epoch=self._bus.epoch,
                start=subscription.start,
                asked=frame.since,
                resumed=subscription.resumed,
                replay=replay,
            )
        )
        nursery.start_soon(self._pump, flow)

    async def _unsubscribe(self, frame: protocol.Unsub) -> None:
        flow = self._flows.pop(frame.s, None)
        if flow is None:
            await self._refuse(frame.id, "unknown", f"there is no subscription {protocol.shown(frame.s)}")
            return
        flow.scope.cancel()
        flow.subscription.close()
        await self._send(protocol.Ok(id=frame.id))

    async def _pump(self, flow: _Flow) -> None:
        """Bring one subscription to the writer, batch by batch, until it ends or is given up."""
        subscription = flow.subscription
        sent_at = -self._config.batch_delay
        live = False
        with flow.scope:
            try:
                while True:
                    try:
                        batch = subscription.receive_batch_nowait(self._config.batch_events)
                    except trio.WouldBlock:
                        if not live:
                            live = True
                            await self._send(protocol.Live(s=flow.s, o=subscription.position))
                        batch = await self._gather(flow, sent_at)
                    await self._tell(flow, batch)
                    sent_at = trio.current_time()
            except trio.EndOfChannel:
                self._flows.pop(flow.s, None)
                subscription.close()
                why = subscription.end_reason or "left"
                await self._send(protocol.End(s=flow.s, why=why, o=flow.told, lost=subscription.dropped))
            except trio.ClosedResourceError:
                pass  # given up in the moment between an event and this task's turn

    async def _gather(self, flow: _Flow, sent_at: float) -> list[Event]:
        """Wait for events; shortly after a batch, for more of them, as a frame an event is slow for everybody."""
        limit, max_bytes = self._config.batch_events, self._config.batch_bytes
        flow.idle = True
        batch = await flow.subscription.receive_batch(limit)
        flow.idle = False
        size = self._size(batch)
        with trio.move_on_at(sent_at + self._config.batch_delay):
            while len(batch) < limit and size < max_bytes:
                try:
                    more = await flow.subscription.receive_batch(limit - len(batch))
                except trio.EndOfChannel:
                    break  # the next call says so again, when this batch is told
                batch += more
                size += self._size(more)
        return batch

    def _size(self, events: Iterable[Event]) -> int:
        return sum(len(self._cache.encode(event)) for event in events if not protocol.is_gap(event))

    async def _tell(self, flow: _Flow, batch: list[Event]) -> None:
        """Send a batch as `ev` frames, with a `gap` wherever events are missing.

        One subscription at a time, so that one frame of a connection waits to be sent, not one of each.
        """
        async with self._turn:
            for is_gap, events in groupby(batch, protocol.is_gap):
                if is_gap:
                    for event in events:
                        await self._send(protocol.gap_frame(flow.s, event, total=flow.subscription.dropped))
                else:
                    written = map(self._cache.encode, events)
                    for text in protocol.batches(flow.s, written, max_bytes=self._config.batch_bytes):
                        await self._outbox.send(text)
        flow.told = max(flow.told, batch[-1].offset)

    # -- frames ------------------------------------------------------------------------------------

    async def _send(self, frame: ServerFrame) -> None:
        await self._outbox.send(write_frame(frame))

    async def _refuse(self, request: Id | None, code: str, why: str, *, retry: bool = False) -> None:
        await self._send(Err(id=request, code=code, msg=why, retry=retry))

    async def _bye(self, code: int, why: str, *, retry: float | None) -> None:
        await self._outbox.send(Bye(code=code, why=why, retry=retry))

    async def _say_bye(self) -> None:
        await self._stopping.wait()
        await self._bye(protocol.STOPPING, "the gateway is stopping", retry=RETRY_AFTER_STOP)

    async def _write(self, connection: trio.CancelScope) -> None:
        """All sends of this connection. One cut short would leave half a frame, so it ends the connection."""
        async for frame in self._frames:
            with trio.move_on_after(self._config.write_deadline) as deadline:
                async with self._writing:
                    await self._socket.send_message(write_frame(frame) if isinstance(frame, Bye) else frame)
                if isinstance(frame, Bye):
                    await self._socket.aclose(frame.code, frame.why)
                    connection.cancel()
                    return
            if deadline.cancelled_caught:
                raise WatcherGone(f"it took nothing for {self._config.write_deadline:g} s")

    async def _beat(self) -> None:
        """Tell where everything stands now and then, and see that the other side is there."""
        while True:
            await trio.sleep(self._config.ping_interval)
            flows = {str(s): flow for s, flow in self._flows.items()}
            frame = protocol.Ping(
                head=self._bus.head,
                pos={s: flow.position for s, flow in flows.items()},
                lost={s: flow.subscription.dropped for s, flow in flows.items()},
                q={s: flow.subscription.queued for s, flow in flows.items()},
            )
            await self._send(frame)
            with trio.move_on_after(self._config.pong_deadline) as deadline:
                await self._socket.ping()
            if deadline.cancelled_caught:
                raise WatcherGone(f"it did not answer a ping for {self._config.pong_deadline:g} s")


def check_room(frames: Sequence[Sub], config: GatewayConfig) -> None:
    """Raise FrameError when this is more than one watcher may ask for."""
    if len(frames) > config.max_subscriptions:
        raise FrameError(f"at most {config.max_subscriptions} subscriptions")
    if sum(min(frame.queue or 0, config.max_queue) for frame in frames) > config.max_queue:
        raise FrameError(f"queue may be at most {config.max_queue} in all subscriptions together")
    patterns, text = map(sum, zip(*map(protocol.price, frames), strict=True))
    if patterns > config.max_patterns:
        each = f"an equality counts as {protocol.EQUALITY}"
        raise FrameError(f"at most {config.max_patterns} patterns ({each}) in all subscriptions together")
    if text > config.max_text:
        raise FrameError(f"at most {config.max_text} characters of patterns and names in all subscriptions together")


def subscribe(
    bus: EventBus, frame: Sub, *, since: str | None = None, config: GatewayConfig, others: int = 0
) -> Subscription:
    """The subscription that a frame asks for, by default `since` a position; raises ValueError with a sentence.

    With `others` beside it the room for large events is less: all of them together hold a few times the first one's.
    """
    if frame.queue is not None and frame.queue > config.max_queue:
        raise ValueError(f"queue may be at most {config.max_queue}, not {frame.queue}")
    return bus.subscribe(
        frame.run,
        types=frame.types,
        topics=frame.topics,
        since=since if frame.since is None else frame.since,
        where=frame.where,
        capacity=frame.queue,
        max_bytes=config.queue_bytes // (1 + others),
        overflow=frame.overflow,
    )


def closing(errors: BaseExceptionGroup[ConnectionClosed]) -> tuple[int, str]:
    """The close code and reason with which the WebSocket library ended the connection."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    reason = error.reason if isinstance(error, ConnectionClosed) else None
    return (VANISHED, "") if reason is None else (reason.code, reason.reason or "")


def left_quietly(error: BaseException) -> bool:
    """Whether this is only a client that went away."""
    return isinstance(error, _ORDINARY_ENDS)
