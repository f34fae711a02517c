"""The table: a model and a store beside each other, and what is published to both."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import msgspec
import pytest

from omniactors.errors import StreamFull
from omniactors.streams.settlement import Publication
from tests.streams import model_steps as steps
from tests.streams.model_checks import Checks
from tests.streams.model_state import Full

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.streams.model import Model
    from tests.streams.model_subject import Subject

LIMIT = 10.0
"""Seconds of real time after which something that must happen has failed to."""

Group = tuple[str, str]


class Table:
    """`door` is a backend that does not serve. `numbers` make everything that is published or settled different."""

    def __init__(self, subject: Subject, model: Model) -> None:
        self.subject = subject
        self.model = model
        self.checks = Checks(model, subject)
        self.door = subject.open()
        self.start = subject.now()
        self.numbers = count(1)

    async def publish(self, pubs: Sequence[steps.Pub]) -> None:
        publications = await self.publications(pubs)
        try:
            fates = self.model.publish(publications, self.subject.now())
        except Full:
            with pytest.raises(StreamFull):
                await self.door.publish(self.told(publications))
            return
        self.checks.compare_published(publications, await self.door.publish(self.told(publications)), fates)

    async def publications(self, pubs: Iterable[steps.Pub]) -> tuple[Publication, ...]:
        """As the model takes them. A topic with delayed ones gets a group, so that it can be fetched."""
        await self.create([(pub.topic, "plain") for pub in pubs if pub.delay or pub.at is not None])
        return tuple(self._publication(pub, next(self.numbers)) for pub in pubs)

    def _publication(self, pub: steps.Pub, number: int) -> Publication:
        return Publication(
            topic=pub.topic,
            task_id=pub.name or f"t{number}",
            body=b'{"n":%d}' % number,
            dedupe=pub.dedupe and pub.name is not None,
            delay=pub.delay,
            at=None if pub.at is None else self.start + (pub.at + 0.5) * steps.TICK,
        )

    def told(self, publications: Iterable[Publication]) -> tuple[Publication, ...]:
        """As the store takes them."""
        return tuple(
            one if one.at is None else msgspec.structs.replace(one, at=self.subject.to_wall(one.at))
            for one in publications
        )

    async def create(self, groups: Sequence[Group]) -> None:
        if groups:
            for topic, agent in groups:
                self.model.group(topic, agent)
            await self.door.create_groups(groups)
