"""Dead letters: waiting for one, and finding those that no test expected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from omniactors.testing.probes import EXPECT_WITHIN

if TYPE_CHECKING:
    from omniactors import DeadLetter, OmniActors

POLL = 0.005
"""Real seconds between two looks into the store, which has no way to tell."""
MANY = 10_000
"""More dead letters of one topic than a test has."""


class DeadLetters:
    """The dead letters of a system, which a test either expects or has none of.

    The store works in a thread of its own, also in memory: run these on trio's real clock.
    """

    def __init__(self, omni: OmniActors) -> None:
        self._omni = omni
        self._expected: set[tuple[str, str, str]] = set()

    async def all(self) -> list[DeadLetter]:
        """Every dead letter of every topic, the newest of a topic first."""
        streams = await self._omni.streams.list()
        return [letter for stream in streams for letter in await self._omni.streams.dlq(stream.topic, MANY)]

    async def expect(self, topic: str, *, within: float = EXPECT_WITHIN) -> DeadLetter:
        """The oldest dead letter of the topic that was not expected before; waits for it.

        Raises AssertionError, which lists the dead letters there are.
        """
        with trio.move_on_after(within):
            while True:
                for letter in reversed(await self._omni.streams.dlq(topic, MANY)):
                    if _key(letter) not in self._expected:
                        self._expected.add(_key(letter))
                        return letter
                await trio.sleep(POLL)
        raise AssertionError(
            _listing(f"no dead letter of {topic!r} came within {within:g} s; there are", await self.all())
        )

    async def check(self) -> None:
        """Raise AssertionError, with a list, if there are dead letters that were not expected."""
        unexpected = [letter for letter in await self.all() if _key(letter) not in self._expected]
        if unexpected:
            raise AssertionError(_listing("dead letters that nobody expected", unexpected))


def _key(letter: DeadLetter) -> tuple[str, str, str]:
    return letter.topic, letter.agent, letter.id


def _listing(title: str, letters: list[DeadLetter]) -> str:
    lines = [f"\n  {one.topic} ({one.agent}): {one.error}, {one.reason}" for one in letters]
    return f"{title}:{''.join(lines) or ' none'}"
