"""The checks: whether all that can be seen of a store is what the model says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import trio

from omniactors.streams.backend import GroupInfo, StreamInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omniactors.streams.backend import Backend, DeadLetter, Entry, Published
    from omniactors.streams.settlement import Publication
    from tests.streams.model import Model
    from tests.streams.model_state import Fate, Letter, Place
    from tests.streams.model_subject import Subject

TOLERANCE = 10.0
"""Seconds by which times may differ: a store with a clock of its own is asked some time after the model."""


def order_of(entry_id: str) -> tuple[int, ...]:
    """What ids are ordered by."""
    return tuple(map(int, entry_id.split("-")))


class Checks:
    """Compares, and knows which of the store's ids belongs to which of the model's numbers."""

    def __init__(self, model: Model, subject: Subject) -> None:
        self._model = model
        self._subject = subject
        self.entry_ids: dict[int, str] = {}
        self.letter_ids: dict[int, str] = {}

    # -- names ----------------------------------------------------------------------------------

    def learn(self, serial: int, entry_id: str) -> None:
        """The id of an entry: always the same, no other's, and in the order of the stream."""
        assert self.entry_ids.setdefault(serial, entry_id) == entry_id
        item = self._model.items[serial]
        for number, known in self.entry_ids.items():
            other = self._model.items[number]
            # What was replayed for two groups at one time has no order: nobody sees both.
            is_seen_with = other.topic == item.topic and (None in {other.only, item.only} or other.only == item.only)
            if number != serial and is_seen_with:
                assert (order_of(known) < order_of(entry_id)) == (number < serial), (known, entry_id)

    def serial_of(self, topic: str, entry_id: str) -> int:
        """The number of an entry."""
        (serial,) = (
            number
            for number, known in self.entry_ids.items()
            if known == entry_id and self._model.items[number].topic == topic
        )
        return serial

    def copy(self, model: Model) -> Checks:
        """The same for a copy of the model."""
        other = Checks(model, self._subject)
        other.entry_ids |= self.entry_ids
        other.letter_ids |= self.letter_ids
        return other

    def become(self, other: Checks) -> None:
        """Know what another one knows, which is not used any more."""
        self.entry_ids, self.letter_ids = other.entry_ids, other.letter_ids

    def letter_id(self, number: int) -> str:
        """The id of a dead letter that was seen."""
        return self.letter_ids.get(number, "1-1")

    def task_of(self, serial: int) -> str:
        """The task id of an entry."""
        return self._model.items[serial].task_id

    def ordering_key(self, serial: int) -> str:
        """The ordering key of an entry: one of two."""
        return "odd" if int(self._model.items[serial].body[5:-1]) % 2 else "even"

    # -- looking at everything ------------------------------------------------------------------

    async def check(self, backend: Backend) -> None:
        """Everything is as in the model."""
        await self.check_streams(backend)
        await self._check_letters(backend)
        await self._check_results(backend)
        await self._check_metrics(backend)
        assert await backend.paused() == self._model.paused
        assert {runtime.consumer for runtime in await backend.runtimes()} == self._model.consumers

    async def check_soon(self, backend: Backend, patience: float) -> None:
        """Everything is as in the model, or will be within so many seconds: another consumer brings it about."""
        deadline = trio.current_time() + patience
        while True:
            try:
                await self.check_streams(backend)
            except AssertionError:
                if trio.current_time() > deadline:
                    raise
                await trio.sleep(0.01)
            else:
                return

    async def check_streams(self, backend: Backend) -> None:
        """The numbers of all streams are as in the model."""
        observed = await backend.streams()
        expected = [self._info(topic) for topic in self._model.topics()]
        if self._subject.is_lazy and len(observed) == len(expected):
            observed = [self._forgive(*pair) for pair in zip(observed, expected, strict=True)]
        assert observed == expected

    def _info(self, topic: str) -> StreamInfo:
        return StreamInfo(
            topic=topic,
            length=len(self._model.streams[topic]),
            groups=[
                GroupInfo(agent=agent, waiting=waiting, pending=pending, delayed=delayed, dead=dead)
                for agent, waiting, pending, delayed, dead in self._model.numbers(topic, self._subject.now())
            ],
            scheduled=self._model.scheduled_for(topic),
        )

    def _forgive(self, observed: StreamInfo, expected: StreamInfo) -> StreamInfo:
        """What was replayed for one group may count at the others, and so keep its place, until they fetch."""
        replayed = sum(item.only is not None and item.topic == observed.topic for item in self._model.items.values())

        def near(number: int, wanted: int) -> int:
            return wanted if wanted <= number <= wanted + replayed else number

        groups = [
            msgspec.structs.replace(group, waiting=near(group.waiting, own.waiting))
            for group, own in zip(observed.groups, expected.groups, strict=False)
        ]
        return msgspec.structs.replace(observed, length=near(observed.length, expected.length), groups=groups)

    def compare_published(
        self, publications: Sequence[Publication], answers: Sequence[Published], fates: Sequence[Fate]
    ) -> None:
        """The fate of each publication."""
        for publication, answer, fate in zip(publications, answers, fates, strict=True):
            assert (answer.task_id, answer.duplicate) == (publication.task_id, fate.is_duplicate)
            if fate.item is not None:
                self.learn(fate.item.serial, answer.entry_id)
            elif not fate.is_duplicate:
                assert answer.entry_id == ""

    def compare_entries(
        self, consumer: str, group: tuple[str, str], entries: Sequence[Entry], places: Sequence[Place]
    ) -> None:
        """What a consumer was given of a group."""
        expected = [(place.item.body, place.attempts, place.crashes) for place in places]
        assert [(entry.body, entry.attempts, entry.crashes) for entry in entries] == expected, group
        for place, entry in zip(places, entries, strict=True):
            assert entry.key.consumer == consumer
            self.learn(place.item.serial, entry.key.entry_id)

    async def _check_letters(self, backend: Backend) -> None:
        for topic in self._model.topics():
            expected = [letter for letter in self._model.letters if letter.topic == topic][::-1]
            self.compare_letters(await backend.dead_letters(topic, limit=1000), expected)

    def compare_letters(self, observed: Sequence[DeadLetter], expected: Sequence[Letter]) -> None:
        """They are the same, newest first; the order of those that one call buried for several agents is open."""
        assert len(observed) == len(expected)
        by_agent = sorted(observed, key=lambda letter: letter.agent)
        for letter, own in zip(by_agent, sorted(expected, key=lambda own: own.agent), strict=True):
            self._compare_letter(letter, own)
        times = [self._letter_of(letter, expected).failed_at for letter in observed]
        assert times == sorted(times, reverse=True)

    def _letter_of(self, letter: DeadLetter, expected: Sequence[Letter]) -> Letter:
        (own,) = [own for own in expected if self.letter_ids[own.number] == letter.id and own.agent == letter.agent]
        return own

    def _compare_letter(self, letter: DeadLetter, own: Letter) -> None:
        assert self.letter_ids.setdefault(own.number, letter.id) == letter.id
        body = own.item.body.decode()
        assert (letter.topic, letter.agent, letter.body, letter.body_encoding) == (own.topic, own.agent, body, "utf-8")
        assert letter.failed_message == {"n": int(body[5:-1])}
        assert letter.original_id == self.entry_ids[own.item.serial]
        error = own.dead.error
        assert (letter.reason, letter.error_type) == (own.dead.reason, error.type)
        assert (letter.error, letter.traceback) == (error.text, error.traceback)
        assert (letter.attempts, letter.retry_count) == (own.dead.attempts, max(own.dead.attempts - 1, 0))
        if self._subject.has_clock:
            assert abs(letter.failed_at - own.failed_at) < TOLERANCE

    async def _check_results(self, backend: Backend) -> None:
        for task_id in list(self._model.results):
            expected = self._model.unexpired(task_id, self._subject.now())
            observed = await backend.get_results(task_id)
            by_agent = sorted(observed, key=lambda record: record.agent)
            own = sorted((one.record for one in expected), key=lambda record: record.agent)
            assert [(one.agent, one.status, one.result) for one in by_agent] == [
                (one.agent, one.status, one.result) for one in own
            ]
            times = {one.record.agent: one.stored_at for one in expected}
            assert [times[one.agent] for one in observed] == sorted(times.values())

    async def _check_metrics(self, backend: Backend) -> None:
        observed = {
            (one.topic, one.agent): (one.completed, one.retried, one.dead, round(one.seconds, 3))
            for one in await backend.metrics()
            if one.completed or one.retried or one.dead
        }
        assert observed == {
            group: (one.completed, one.retried, one.dead, round(one.seconds, 3))
            for group, one in self._model.counts.items()
        }

    @staticmethod
    def compare_due(observed: float | None, expected: float | None) -> None:
        """The time until something is due."""
        if observed is None or expected is None:
            assert observed == expected
        else:
            assert abs(observed - expected) < TOLERANCE
