"""Dead letters are none, or expected."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from omniactors import Agent, EventEnvelope, OmniActors, Reject
from omniactors.testing import DeadLetters


class Picky(Agent, topic="picky"):
    async def handle(self, event: EventEnvelope[Any]) -> None:
        if event.payload.content == "bad":
            raise Reject("it is bad")


async def test_a_dead_letter_is_trouble_until_it_is_expected() -> None:
    omni = OmniActors("memory://")
    omni.add(Picky)
    letters = DeadLetters(omni)
    with trio.fail_after(20):
        async with omni:
            await omni.wait_result(await omni.publish("picky", "good"))
            await letters.check()
            with pytest.raises(AssertionError, match=r"no dead letter of 'picky' came within 0\.1 s; there are: none"):
                await letters.expect("picky", within=0.1)
            for _ in range(2):
                await omni.publish("picky", "bad")
            first = await letters.expect("picky")
            second = await letters.expect("picky")
            assert (first.reason, first.error) == ("rejected", "Reject: it is bad")
            assert first.id != second.id
            await letters.check()
            await omni.publish("picky", "bad")
            await DeadLetters(omni).expect("picky")
            while len(await letters.all()) < 3:  # noqa: ASYNC110 -- a thread brings it about
                await trio.sleep(0.01)
            with pytest.raises(AssertionError, match=r"nobody expected:\n  picky \(.*\): Reject: it is bad, rejected"):
                await letters.check()
        await omni.shutdown()
