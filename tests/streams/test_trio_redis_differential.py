"""TrioRedis against redis-py: the same random commands give the same replies and the same errors."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis import exceptions

from omniactors import TrioRedis
from tests.redis_server import fresh_prefix

if TYPE_CHECKING:
    from tests.redis_server import RedisServer

STEPS = 300

KEYS = ("a", "b", "c")
WORDS = ("x", "é", b"\xff\x00", "12", 7, 1.25, "", -3)

Step = tuple[str, tuple[Any, ...], dict[str, Any]]


def steps(chance: random.Random, prefix: str) -> list[Step]:
    """Random calls of command methods; the same chance gives the same calls for any prefix."""
    made = []
    for number in range(1, STEPS + 1):
        key, other = prefix + chance.choice(KEYS), prefix + chance.choice(KEYS)
        word, count, field = chance.choice(WORDS), chance.randrange(-2, 4), chance.choice(("x", "é", "12"))
        entry = f"{number}-1"
        choices: list[Step] = [
            ("set", (key, word), {}),
            ("set", (key, word), {"nx": True, "px": 60_000}),
            ("get", (key,), {}),
            ("delete", (key,), {}),
            ("incrby", (key, count), {}),
            ("incrbyfloat", (key, count / 4), {}),
            ("type", (key,), {}),
            ("mget", ([key, other],), {}),
            ("mget", ([],), {}),
            ("hset", (key,), {"mapping": {"f": word, "g": 2}}),
            ("hset", (key, field, word), {}),
            ("hgetall", (key,), {}),
            ("hincrbyfloat", (key, "g", 0.5), {}),
            ("rpush", (key, word, "end"), {}),
            ("lrange", (key, 0, count), {}),
            ("lpop", (key, count), {}),
            ("sadd", (key, word), {}),
            ("smembers", (key,), {}),
            ("zadd", (key, {field: count / 3}), {}),
            ("zrange", (key, 0, -1), {"withscores": True}),
            ("zscore", (key, field), {}),
            ("xadd", (key, {"f": word}), {"id": entry}),
            ("xrange", (key,), {"count": count}),
            ("xgroup_create", (key, "g"), {"id": "0", "mkstream": True}),
            ("xreadgroup", ("g", "c", {key: ">"}), {"count": abs(count) or 1}),
            ("xread", ({key: "0"},), {}),
            ("xpending", (key, "g"), {}),
            ("xpending_range", (key, "g", "-", "+", 5), {}),
            ("xautoclaim", (key, "g", "d", 0), {}),
            ("xack", (key, "g", "1-1"), {}),
            ("xinfo_stream", (key,), {}),
            ("eval", ("return {ARGV[1], 1, false, {KEYS[1]}}", 1, key, word), {}),
            ("evalsha", ("0" * 40, 0), {}),
            ("eval", ("return redis.error_reply('OOM no room')", 0), {}),
            ("expire", (key, 100), {}),
            ("object", ("encoding", key), {}),
            ("dump", (key,), {}),
            ("geoadd", (key, (13.4, 52.5, "berlin")), {}),
            ("geopos", (key, "berlin", "none"), {}),
            ("setbit", (key, 7, 1), {}),
            ("execute_command", ("GETRANGE", key, 0, 1), {}),
            ("execute_command", ("OBJECT REFCOUNT", key), {}),
            ("execute_command", ("NOSUCH", "x"), {}),
            ("set", (key, None), {}),
        ]
        made.append(chance.choice(choices))
    return made


def outcome(value: object, prefix: str) -> object:
    """A reply or an error, with the key prefix taken out, in a form that can be compared."""
    if isinstance(value, exceptions.DataError):
        return type(value)  # of our own making, and in our words
    if isinstance(value, Exception):
        return type(value), str(value).replace(prefix, "")
    if isinstance(value, set):
        return sorted(map(repr, value))
    return repr(value).replace(prefix, "")


def ask_redis_py(client: redis.Redis, step: Step, prefix: str) -> object:
    name, args, options = step
    try:
        return outcome(getattr(client, name)(*args, **options), prefix)
    except exceptions.RedisError as exc:
        return outcome(exc, prefix)


async def ask_trio(client: TrioRedis, step: Step, prefix: str) -> object:
    name, args, options = step
    try:
        return outcome(await getattr(client, name)(*args, **options), prefix)
    except exceptions.RedisError as exc:
        return outcome(exc, prefix)


@pytest.mark.parametrize("query", ["", "?decode_responses=true&encoding_errors=replace"])
@pytest.mark.parametrize("mode", ["inside", "outside"])
@pytest.mark.parametrize("seed", range(3))
async def test_the_same_commands_give_the_same(redis_server: RedisServer, seed: int, mode: str, query: str) -> None:
    theirs, ours = fresh_prefix(), fresh_prefix()
    url = redis_server.url + query
    client, succeeded = TrioRedis(url), 0

    async def compare() -> None:
        nonlocal succeeded
        with redis.Redis.from_url(url, protocol=2) as reference:
            both = zip(steps(random.Random(seed), theirs), steps(random.Random(seed), ours), strict=True)
            for number, (their_step, our_step) in enumerate(both):
                expected = ask_redis_py(reference, their_step, theirs)
                found = await ask_trio(client, our_step, ours)
                assert found == expected, f"step {number}: {our_step}"
                succeeded += not isinstance(expected, tuple | type)

    if mode == "inside":
        async with client:
            await compare()
    else:
        try:
            await compare()
        finally:
            await client.aclose()
    assert succeeded > STEPS / 4, "too few commands made sense"
