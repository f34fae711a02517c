"""Calls at one time: a store may carry them out together, and all must be as if one had come after another."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import trio

from omniactors.errors import StreamFull
from tests.streams.model_state import Full

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from omniactors.streams.backend import Backend, Fetched, Published, Want
    from omniactors.streams.settlement import EntryKey, Publication, Settlement
    from tests.streams.model import Model
    from tests.streams.model_checks import Checks
    from tests.streams.model_state import Hold
    from tests.streams.model_table import Table


@dataclass(frozen=True)
class Call:
    """`tell` makes the call; `agree` makes it on a model, and asserts that the answer is right."""

    tell: Callable[[], Awaitable[object]]
    agree: Callable[[Model, Checks, object], None]


def publish(backend: Backend, publications: Sequence[Publication], told: Sequence[Publication], now: float) -> Call:
    """Publish."""

    async def tell() -> list[Published] | None:
        try:
            return await backend.publish(told)
        except StreamFull:
            return None

    def agree(model: Model, checks: Checks, answer: object) -> None:
        try:
            fates = model.publish(publications, now)
        except Full:
            assert answer is None
            return
        assert isinstance(answer, list)
        checks.compare_published(publications, answer, fates)

    return Call(tell, agree)


def settle(
    backend: Backend, consumer: str, endings: Sequence[tuple[Hold, Settlement]], told: Sequence[Settlement], now: float
) -> Call:
    """Settle."""

    def agree(model: Model, _: Checks, answer: object) -> None:
        assert answer == model.settle(consumer, endings, now)

    return Call(lambda: backend.settle_many(told), agree)


def release(backend: Backend, consumer: str, holds: Sequence[Hold], keys: Sequence[EntryKey]) -> Call:
    """Release."""
    return Call(lambda: backend.release(keys), lambda model, _, __: model.release(consumer, holds))


def fetch(backend: Backend, consumer: str, want: Want, now: float) -> Call:
    """Fetch from one group."""

    def agree(model: Model, checks: Checks, answer: Fetched) -> None:
        ((group, places),) = model.fetch(consumer, [want], now).items()
        checks.compare_entries(consumer, group, answer.entries, places)

    return Call(lambda: backend.fetch([want]), agree)  # type: ignore[arg-type]  # its answer is what it is given


async def make(calls: Sequence[Call], table: Table) -> list[object]:
    """Make all calls at once, and find an order in which they could have come; the model has taken them then."""
    answers: list[object] = [None] * len(calls)

    async def tell(place: int) -> None:
        answers[place] = await calls[place].tell()

    async with trio.open_nursery() as nursery:
        for place in range(len(calls)):
            nursery.start_soon(tell, place)
    failure: AssertionError | None = None
    for order in permutations(range(len(calls))):
        model = copy.deepcopy(table.model)
        checks = table.checks.copy(model)
        try:
            for place in order:
                calls[place].agree(model, checks, answers[place])
            await checks.check_streams(table.door)
        except AssertionError as error:
            failure = failure or error
        else:
            table.model.become(model)
            table.checks.become(checks)
            return answers
    assert failure is not None
    raise failure
