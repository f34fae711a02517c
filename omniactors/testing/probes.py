"""Probes: an actor to hand to the code under test, which notes what it gets and replies as it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from omniactors import Actor, ChildSpec, on

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from omniactors import ActorRef, Supervisor

EXPECT_WITHIN = 3.0
"""Seconds in trio's time to wait for something that a test expects."""


async def start_probe(supervisor: Supervisor, *accepts: type, name: Hashable = None) -> Probe:
    """A probe among the children of `supervisor`, under the id `name` ("Probe-1" and so on without one).

    `accepts` are the message types that it takes; an Actor class stands for all that it handles.
    Anything else is refused with UnhandledMessage, as by a real actor. Without any it takes everything.
    """
    inbox = _Inbox()
    ref = await supervisor.start_child(ChildSpec(_probe_class(accepts), inbox, id=name))
    return Probe(ref, inbox)


class Probe:
    """What a test holds of a probe; `ref` is what the code under test gets.

    `expect` goes through the messages one by one, in the order in which they came.
    """

    def __init__(self, ref: ActorRef[Any], inbox: _Inbox) -> None:
        self.ref = ref
        """A real ActorRef of a real actor."""
        self._inbox = inbox
        self._taken = 0

    @property
    def received(self) -> list[Any]:
        """All messages so far, expected or not."""
        return list(self._inbox.messages)

    async def expect(self, what: Any, *, within: float = EXPECT_WITHIN) -> Any:  # noqa: ANN401 -- a type, or a message
        """Wait for the next message and return it: one of this type, or equal to this value.

        Raises AssertionError, which shows what came instead.
        """
        name = what.__name__ if isinstance(what, type) else repr(what)
        with trio.move_on_after(within):
            await self._wait_for_next()
        if self._taken == len(self._inbox.messages):
            raise self._failure(f"expected {name}, but nothing came within {within:g} s")
        message = self._inbox.messages[self._taken]
        if not (isinstance(message, what) if isinstance(what, type) else message == what):
            raise self._failure(f"expected {name}, but got {message!r}")
        self._taken += 1
        return message

    async def expect_no_message(self, within: float) -> None:
        """Wait `within` seconds; raises AssertionError as soon as there is a message that nobody expected yet."""
        began = trio.current_time()
        with trio.move_on_after(within):
            await self._wait_for_next()
            after = trio.current_time() - began
            message = self._inbox.messages[self._taken]
            raise self._failure(f"expected no message for {within:g} s, but got {message!r} after {after:g} s")

    def reply_with(self, value: object, *, to: type = object) -> None:
        """Reply to each ask from now on, of this type, with `value`; without this the reply is None."""

        async def answer(_message: object) -> object:
            return value

        self.answer_by(answer, to=to)

    def answer_by(self, answer: Callable[[Any], Awaitable[object]], *, to: type = object) -> None:
        """Handle each message from now on, of this type, by an async function; what it returns is the reply.

        What it raises crashes the probe, as it would any actor: the asker gets AskFailed, and the
        supervisor starts the probe again. The newest rule that fits a message counts.
        """
        self._inbox.answers.insert(0, (to, answer))

    async def _wait_for_next(self) -> None:
        while self._taken == len(self._inbox.messages):
            await self._inbox.news.wait()

    def _failure(self, text: str) -> AssertionError:
        lines = [
            f"\n  {number}. {message!r}{' (expected)' if number <= self._taken else ''}"
            for number, message in enumerate(self._inbox.messages, 1)
        ]
        return AssertionError(f"{self.ref.path}: {text}; received:{''.join(lines) or ' nothing'}")

    def __repr__(self) -> str:
        return f"<Probe {self.ref.path}, {len(self._inbox.messages)} received, {self._taken} of them expected>"


class _Inbox:
    """What outlasts the incarnations of a probe."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.answers: list[tuple[type, Callable[[Any], Awaitable[object]]]] = []
        self.news = trio.Event()

    async def take(self, message: object) -> object:
        """Note a message and reply."""
        self.messages.append(message)
        news, self.news = self.news, trio.Event()
        news.set()
        for kind, answer in self.answers:
            if isinstance(message, kind):
                return await answer(message)
        return None


def _probe_class(accepts: tuple[type, ...]) -> type[Actor[Any]]:
    kinds: list[type] = []
    for kind in accepts:
        kinds.extend(kind.__handlers__ if issubclass(kind, Actor) else [kind])

    class Probe(Actor[Any]):
        def __init__(self, inbox: _Inbox) -> None:
            self._inbox = inbox

        @on(*(kinds or [object]))
        async def take(self, message: object) -> Any:  # noqa: ANN401 -- the reply to any request
            return await self._inbox.take(message)

    return Probe
