"""What the other processes of the tests do: `python -m tests.streams.processes ROLE DATABASE [NAME]`.

Each writes what it has done to its standard output, one task id per line.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import msgspec
import trio

from omniactors.streams.backend import Entry, Want
from omniactors.streams.settlement import Publication, Settlement
from omniactors.streams.sqlite.backend import SqliteBackend

TOPIC, STOP, DONE, AGENT = "work", "stop", "done", "worker"


def tell(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 -- this is how the test hears of it


def event(task_id: str, topic: str = TOPIC) -> Publication:
    return Publication(topic=topic, task_id=task_id, body=msgspec.json.encode(task_id))


async def publish(backend: SqliteBackend, name: str) -> None:
    """Publish for ever, two events at a time; each is told once it is acknowledged."""
    for number in range(10**9):
        ids = [f"{name}-{number}-{part}" for part in "ab"]
        await backend.publish([event(task_id) for task_id in ids])
        tell("\n".join(ids))


async def consume(backend: SqliteBackend, _: str) -> None:
    """Settle all there is until something comes in the topic `stop`."""
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.serve)
        while True:
            fetched = await backend.fetch([Want(TOPIC, AGENT, 64), Want(STOP, AGENT, 1)])
            if any(entry.key.topic == STOP for entry in fetched.entries):
                break
            await settle(backend, fetched.entries)
            if not fetched.entries:
                await backend.wait(dict.fromkeys((TOPIC, STOP), fetched.position))
        nursery.cancel_scope.cancel()
    await backend.close()


async def settle(backend: SqliteBackend, entries: list[Entry]) -> None:
    flags = await backend.settle_many([Settlement(key=entry.key) for entry in entries])
    for entry, flag in zip(entries, flags, strict=True):
        if flag:
            tell(msgspec.json.decode(entry.body))


async def keep_order(backend: SqliteBackend, _: str) -> None:
    """Settle all there is, in order per key (what is before the dash), and publish each to the topic `done`."""
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.serve)
        tell("serving")
        queue: list[Entry] = []
        while True:
            fetched = await backend.fetch([Want(TOPIC, AGENT, 4, is_ordered=True)])
            queue += fetched.entries
            names = [str(msgspec.json.decode(entry.body)) for entry in queue]
            flags = await backend.claim(
                [(entry.key, name.split("-")[0]) for entry, name in zip(queue, names, strict=True)]
            )
            queue = [entry for entry, is_ours in zip(queue, flags, strict=True) if is_ours]
            for entry in queue[:2]:
                follow_up = event(msgspec.json.decode(entry.body), DONE)
                await backend.settle_many([Settlement(key=entry.key, publications=(follow_up,))])
            queue = queue[2:]
            if not queue:
                await backend.wait({TOPIC: fetched.position})


async def hold(backend: SqliteBackend, _: str) -> None:
    """Take all there is and keep it; handlers have begun with the second and the third, and the first is done."""
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.serve)
        fetched = await backend.fetch([Want(TOPIC, AGENT, 1000)])
        rows = [backend.in_hand.begin(entry.key) for entry in fetched.entries[:3]]
        backend.in_hand.end(rows[0])
        for entry in fetched.entries:
            tell(msgspec.json.decode(entry.body))
        await trio.sleep_forever()


async def fork(backend: SqliteBackend, _: str) -> None:
    """Take all there is, and leave a child behind that lives on and tells its process id."""
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.serve)
        await backend.fetch([Want(TOPIC, AGENT, 1000)])
        if os.fork() == 0:
            tell(os.getpid())
            time.sleep(60)  # noqa: ASYNC251 -- a forked child must not go on with its parent's loop
            os._exit(0)
        await trio.sleep_forever()


async def keep_busy(backend: SqliteBackend, _: str) -> None:
    """Publish, fetch and settle without a pause."""
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.serve)
        tell("busy")
        while True:
            await backend.publish([event(str(number), "busy") for number in range(50)])
            fetched = await backend.fetch([Want("busy", AGENT, 50)])
            await backend.settle_many([Settlement(key=entry.key) for entry in fetched.entries])


async def forget(backend: SqliteBackend, _: str) -> None:
    """Publish and end without closing anything."""
    await backend.publish([event(f"forgotten-{number}") for number in range(10)])
    tell("published")


def publish_in_child(backend: SqliteBackend) -> None:
    """Publish, then in a child that was forked, then in the parent again; the child's way to end is plain."""
    trio.run(backend.publish, [event("parent-1")])
    child = os.fork()
    trio.run(backend.publish, [event("child" if child == 0 else "parent-2")])
    if child == 0:
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    tell("child ended with", status)


def fill(path: Path) -> None:
    """Publish under a limit of the file size, until it is refused; then lift it and go on."""
    import resource  # noqa: PLC0415 -- not on every system

    async def main() -> None:
        backend = SqliteBackend(path)
        await backend.publish([event("first")])
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        try:
            for number in range(100):
                await backend.publish([Publication(topic="big", task_id=str(number), body=b"x" * 100_000)])
                tell(number)
        except Exception as error:  # noqa: BLE001 -- the test reads which it was
            tell(type(error).__name__, error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await backend.publish([event("last")])
        tell("published again")

    trio.run(main)


ROLES = {f.__name__: f for f in (publish, consume, keep_order, hold, fork, keep_busy, forget)}


def main(role: str, path: str, name: str = "") -> None:
    if role == "fill":
        fill(Path(path))
        return
    backend = SqliteBackend(Path(path))
    if role == "publish_in_child":
        publish_in_child(backend)
    else:
        trio.run(ROLES[role], backend, name)


if __name__ == "__main__":
    main(*sys.argv[1:])
