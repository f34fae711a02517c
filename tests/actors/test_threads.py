"""Threads: what belongs to a trio run is refused in any other thread, and is as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from omniactors import Actor, NoReply, ServiceKey, on, open_supervisor, pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from omniactors import ActorRef, PoolRef, Supervisor

NAME = ServiceKey[str]("name")


class Echo(Actor[Any]):
    """Says what it is told; asked for itself, it says who it is."""

    @on
    async def echo(self, message: str) -> str:
        return message

    @on
    async def itself(self, _message: int) -> Echo:
        return self

    @on
    async def later(self, _message: float) -> str:
        self.reply_later()
        return NoReply


OF_THE_TREE: dict[str, Callable[[Supervisor, ActorRef[Any], PoolRef[Any]], Awaitable[object]]] = {
    "start_child": lambda sup, _ref, _pool: sup.start_child(Echo),
    "stop_child": lambda sup, ref, _pool: sup.stop_child(ref.id),
    "restart_child": lambda sup, ref, _pool: sup.restart_child(ref.id),
    "delete_child": lambda sup, ref, _pool: sup.delete_child(ref.id),
    "sup.stop": lambda sup, _ref, _pool: sup.stop(deadline=1),
    "wait_children": lambda sup, _ref, _pool: sup.wait_children(),
    "wait_stopping": lambda sup, _ref, _pool: sup.wait_stopping(),
    "wait_ended": lambda sup, _ref, _pool: sup.wait_ended(),
    "wait_for": lambda sup, _ref, _pool: sup.registry.wait_for(NAME),
    "stop": lambda _sup, ref, _pool: ref.stop(),
    "stop_now": lambda _sup, ref, _pool: ref.stop_now(),
    "wait_stopped": lambda _sup, ref, _pool: ref.wait_stopped(),
    "suspend": lambda _sup, ref, _pool: ref.suspend(),
    "ask": lambda _sup, ref, _pool: ref.ask("x"),
    "tell": lambda _sup, ref, _pool: ref.tell("x"),
    "resize": lambda _sup, _ref, pool: pool.resize(3),
}


@pytest.mark.parametrize("name", OF_THE_TREE)
async def test_another_run_in_another_thread_changes_nothing_of_a_tree(name: str) -> None:
    async with open_supervisor() as sup:
        ref, crew = await sup.start_child(Echo), await sup.start_child(pool(Echo, size=2))

        async def elsewhere() -> None:
            await OF_THE_TREE[name](sup, ref, crew)

        with trio.fail_after(60), pytest.raises(RuntimeError, match="runs in another thread"):
            await trio.to_thread.run_sync(trio.run, elsewhere)
        assert [child.status for child in sup.which_children()] == ["running", "running"]
        assert await ref.ask("a") == await crew.ask("a") == "a"
        assert ref.statistics().accepted == 1
        assert crew.size == 2


OF_THE_ACTOR: dict[str, Callable[[Echo, ActorRef[Any]], object]] = {
    "stop": lambda actor, _ref: actor.stop(),
    "reply_later": lambda actor, _ref: actor.reply_later(),
    "stash": lambda actor, _ref: actor.stash("x"),
    "unstash_all": lambda actor, _ref: actor.unstash_all(),
    "become": lambda actor, _ref: actor.become(actor.echo),
    "timers.once": lambda actor, _ref: actor.timers.once("k", 0, "x"),
    "timers.cancel": lambda actor, _ref: actor.timers.cancel("k"),
    "start_soon": lambda actor, _ref: actor.start_soon(trio.sleep, 0),
    "watch": lambda actor, ref: actor.watch(ref),
    "unwatch": lambda actor, ref: actor.unwatch(ref),
    "register": lambda actor, _ref: actor.registry.register(NAME),
    "unregister": lambda actor, _ref: actor.registry.unregister(NAME),
    "tell_nowait": lambda _actor, ref: ref.tell_nowait("x"),
    "call_at_end": lambda _actor, ref: ref.call_at_end(print),
    "request_stop": lambda actor, _ref: actor.supervisor.request_stop(),
    "sup.stop_now": lambda actor, _ref: actor.supervisor.stop_now(),
}


@pytest.mark.parametrize("name", OF_THE_ACTOR)
async def test_a_worker_thread_of_an_actor_changes_nothing_of_it(name: str) -> None:
    async with open_supervisor() as sup:
        ref = await sup.start_child(Echo)
        actor = await ref.ask(0)
        with pytest.raises(RuntimeError, match="runs in another thread"):
            await trio.to_thread.run_sync(OF_THE_ACTOR[name], actor, ref)
        assert await ref.ask("a") == "a"
        assert (ref.incarnation, ref.statistics().accepted, sup.registry.find(NAME)) == (1, 2, None)
