"""Any script of operations, crashes and clock steps goes in Redis as in the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import example, given

from tests.redis_server import redis_server
from tests.streams.model_redis import RedisSubject
from tests.streams.model_scripts import DEDUPE_WINDOW, LIMITS, RELEASED_TWICE, SCRIPTS, SHORT_RESULT, examples, play

if TYPE_CHECKING:
    from tests.redis_server import RedisServer
    from tests.streams.model_steps import AnyStep

__all__ = ["redis_server"]


@examples(40)
@given(script=SCRIPTS, limit=LIMITS)
@example(script=SHORT_RESULT, limit=None)
@example(script=RELEASED_TWICE, limit=None)
def test_redis_goes_as_the_model(redis_server: RedisServer, script: list[AnyStep], limit: int | None) -> None:
    play(RedisSubject(redis_server, dedupe_window=DEDUPE_WINDOW, stream_limit=limit), script, limit)
