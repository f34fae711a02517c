"""The database thread: it groups what trio tasks ask for into transactions, and wakes who waits.

One daemon thread per backend, started on first use. A request that is cancelled is withdrawn
until the thread has taken it; from then on the caller waits for its outcome.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import weakref
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import outcome
import trio

from omniactors.errors import BackendClosed, BackendError
from omniactors.streams.runs import require_trio
from omniactors.streams.sqlite.breath import breath_of_this_run
from omniactors.streams.sqlite.store import Store
from omniactors.streams.sqlite.work import (
    Changes,
    Claim,
    Diagnose,
    Fetch,
    Publish,
    Read,
    Register,
    Release,
    Results,
    Runtimes,
    Settle,
    Snapshot,
    Unregister,
    Watch,
    Work,
    Write,
    work_weight,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from omniactors.streams.sqlite.database import StoreSettings

T = TypeVar("T")

_MAX_BATCH: Final = 1024
"""Requests of one transaction, so that neither it nor its memory grows without bound."""

_MAX_BYTES: Final = 32 << 20
"""Bytes of one transaction, but for the request that goes beyond."""

_POLL: Final = 0.02
"""Seconds between looks for other processes' commits, while somebody waits."""

_MAINTENANCE: Final = 1.0
"""Seconds between rounds of maintenance, while serving."""

_EXIT_WAIT: Final = 10.0
"""Seconds that the end of the interpreter waits for what was accepted."""


_log = logging.getLogger("omniactors.streams.sqlite")


class _Request:
    """Work on its way to the thread and back to the task that waits for it."""

    __slots__ = ("_claim", "is_answered", "task", "token", "weight", "work")

    def __init__(self, work: Work[Any]) -> None:
        self.work = work
        self.weight = work_weight(work)
        self.is_answered = False
        self.task = trio.lowlevel.current_task()
        self.token = trio.lowlevel.current_trio_token()
        self._claim = threading.Lock()

    def claim(self) -> bool:
        """True for the first who asks: the thread that carries it out, or the caller who withdraws it."""
        return self._claim.acquire(blocking=False)

    @property
    def is_claimed(self) -> bool:
        """True once it is carried out or withdrawn."""
        return self._claim.locked()


class _Stop:
    """The last thing in a queue; `request` is who waits for the end, if anybody does."""

    def __init__(self, request: _Request | None) -> None:
        self.request = request


_Queue = queue.SimpleQueue["_Request | _Stop"]


class Writer:
    """The trio side: hands work to the thread and waits for the outcome. Usable from any trio run."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._guard = threading.Lock()
        self._queue: _Queue | None = None
        self._finalizer: weakref.finalize[..., Writer] | None = None
        _writers.add(self)

    async def call(self, work: Work[T]) -> T:
        """Have `work` carried out; raises BackendError or a subclass.

        Cancelled before the thread took it, nothing happens; afterwards the outcome is waited for.
        """
        require_trio()
        await trio.lowlevel.checkpoint_if_cancelled()
        request = _Request(work)
        self._put(request)
        endless = isinstance(work, Watch) or (isinstance(work, Results) and work.known is not None)
        breath = breath_of_this_run()
        with breath.news if endless else breath.answers:
            return cast("T", await _outcome_of(request))

    async def close(self) -> None:
        """Finish what was accepted and end the thread; the next call starts another."""
        require_trio()
        with self._guard:
            mailbox, self._queue = self._queue, None
            if self._finalizer is not None:
                self._finalizer.detach()
        if mailbox is None:
            await trio.lowlevel.checkpoint()
            return
        request = _Request(Work[None]())
        mailbox.put(_Stop(request))
        with trio.CancelScope(shield=True):
            await _outcome_of(request)

    def _put(self, request: _Request) -> None:
        with self._guard:
            if self._queue is None:
                self._queue = self._start()
            # Under the guard: after a stop nothing may be added.
            self._queue.put(request)

    def begin_anew(self) -> None:
        """Called in a child that was forked: what it inherited is never touched, and the guard may be held for ever."""
        self._guard = threading.Lock()
        self._queue = None
        if self._finalizer is not None:
            self._finalizer.detach()

    def _start(self) -> _Queue:
        mailbox: _Queue = queue.SimpleQueue()
        thread = threading.Thread(
            target=_Thread(Store(self._settings), mailbox).run, name="omniactors-sqlite", daemon=True
        )
        thread.start()
        # Also run at the interpreter's exit, which would else end the thread in the middle of its work.
        self._finalizer = weakref.finalize(self, _finish, mailbox, thread, os.getpid())
        return mailbox


_writers: weakref.WeakSet[Writer] = weakref.WeakSet()


def _begin_anew() -> None:
    for writer in list(_writers):
        writer.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def _finish(mailbox: _Queue, thread: threading.Thread, pid: int) -> None:
    if pid != os.getpid() or thread is threading.current_thread():
        return
    mailbox.put(_Stop(None))
    thread.join(_EXIT_WAIT)


async def _outcome_of(request: _Request) -> object:
    def abort(_: object) -> trio.lowlevel.Abort:
        return trio.lowlevel.Abort.SUCCEEDED if request.claim() else trio.lowlevel.Abort.FAILED

    return await trio.lowlevel.wait_task_rescheduled(abort)


class _Answers:
    """Outcomes on their way back: one call into each trio run, however many there are."""

    def __init__(self) -> None:
        self._ready: defaultdict[trio.lowlevel.TrioToken, list[tuple[trio.lowlevel.Task, outcome.Outcome[Any]]]]
        self._ready = defaultdict(list)

    def add(self, request: _Request, result: outcome.Outcome[Any]) -> None:
        """Answer a request that we have claimed."""
        request.is_answered = True
        self._ready[request.token].append((request.task, result))

    def send(self) -> None:
        """Wake the callers."""
        for token, tasks in self._ready.items():
            try:
                token.run_sync_soon(_reschedule, tasks)
            except trio.RunFinishedError:
                continue  # nobody is left who could want to know
        self._ready.clear()


def _reschedule(tasks: list[tuple[trio.lowlevel.Task, outcome.Outcome[Any]]]) -> None:
    for task, result in tasks:
        trio.lowlevel.reschedule(task, result)


class _Thread:
    """The loop of the database thread."""

    def __init__(self, store: Store, mailbox: _Queue) -> None:
        self._store = store
        self._mailbox = mailbox
        self._answers = _Answers()
        self._put_off: list[_Request] = []
        self._stop: _Stop | None = None
        # Positions grow over the whole life of the process, also when the store is closed and opened again.
        self._position = self._all_changed = time.monotonic_ns()
        self._changed: dict[str, int] = {}
        self._all_seen = self._all_changed
        self._topic_watchers: list[tuple[_Request, Watch]] = []
        self._new_watchers: list[tuple[_Request, Watch]] = []
        self._result_watchers: list[tuple[_Request, Results]] = []
        self._next_poll = 0.0
        self._next_maintenance = 0.0

    def run(self) -> None:
        """Work until told to stop, then close the store."""
        while self._stop is None or self._put_off:
            requests = self._drain()
            try:
                with self._store.gate:
                    self._work(requests)
                    self._tick()
            except Exception as error:  # noqa: BLE001 -- all callers depend on this thread: it tells them, and goes on
                self._fail(requests, error)
            self._answers.send()
        with self._store.gate:
            closed = outcome.capture(self._store.close)
        for request, _ in [*self._topic_watchers, *self._result_watchers]:
            if request.claim():
                self._answers.add(request, outcome.Error(BackendClosed("the store was closed")))
        if self._stop.request is not None:
            self._answers.add(self._stop.request, closed)
        self._answers.send()

    def _fail(self, requests: list[_Request], error: Exception) -> None:
        _log.error("the database thread goes on after an error of its own", exc_info=error)
        failure = outcome.Error(BackendError(f"the database thread failed: {type(error).__name__}: {error}"))
        for request in requests:
            is_ours = not isinstance(request.work, Watch | Results) or request.claim()
            if is_ours and not request.is_answered and request not in self._put_off:
                self._answers.add(request, failure)

    # -- receiving ------------------------------------------------------------------------------

    def _drain(self) -> list[_Request]:
        """Wait for requests, and claim all there are, up to the bound."""
        requests, self._put_off = self._put_off, []
        timeout = 0.0 if requests else self._patience()
        weight = 0
        while self._stop is None and len(requests) < _MAX_BATCH and weight < _MAX_BYTES:
            try:
                item = self._mailbox.get(timeout=timeout) if timeout != 0 else self._mailbox.get_nowait()
            except queue.Empty:
                break
            timeout = 0.0
            if isinstance(item, _Stop):
                self._stop = item
            elif isinstance(item.work, Watch | Results) or item.claim():
                requests.append(item)
                weight += item.weight
        return requests

    def _patience(self) -> float | None:
        """Seconds until something has to be done without a request."""
        times = []
        if self._topic_watchers or self._result_watchers:
            times.append(self._next_poll)
        if self._store.is_serving:
            times.append(self._next_maintenance)
        return max(0.0001, min(times) - time.monotonic()) if times else None

    # -- working --------------------------------------------------------------------------------

    def _work(self, requests: list[_Request]) -> None:
        writes: list[_Request] = []
        results: list[tuple[_Request, Results]] = []
        others: list[_Request] = []
        has_fetch = False
        for request in requests:
            match request.work:
                case Fetch() if has_fetch:
                    self._put_off.append(request)  # it would be given what the first one gets
                case Publish() | Settle() | Release() | Claim() | Write() | Fetch():
                    has_fetch = has_fetch or isinstance(request.work, Fetch)
                    writes.append(request)
                case Results() as work:
                    results.append((request, work))
                case Watch() as work:
                    self._new_watchers.append((request, work))
                case _:
                    others.append(request)
        changes = self._write(writes)
        self._answers.send()
        for request in others:
            self._answers.add(request, self._perform(request.work))
        self._wake(changes, results)

    def _write(self, requests: list[_Request]) -> Changes:
        if not requests:
            return Changes()
        outcomes, changes = self._store.write([cast("Any", request.work) for request in requests], self._position)
        for request, result in zip(requests, outcomes, strict=True):
            self._answers.add(request, result)
        return changes

    def _perform(self, work: Work[Any]) -> outcome.Outcome[Any]:  # noqa: PLR0911 -- one for each kind of work
        match work:
            case Read():
                return self._store.read(work)
            case Register():
                self._next_maintenance = 0.0
                return self._store.register()
            case Unregister():
                self._change_all()
                return self._store.unregister()
            case Runtimes():
                return self._store.runtimes()
            case Diagnose():
                return self._store.diagnose()
            case Snapshot():
                return self._store.snapshot()
        return outcome.Error(TypeError(f"unknown work: {work!r}"))

    # -- waking ---------------------------------------------------------------------------------

    def _wake(self, changes: Changes, results: list[tuple[_Request, Results]]) -> None:
        if changes.anything:
            self._change_all()
        if changes.topics:
            self._position += 1
            self._changed |= dict.fromkeys(changes.topics, self._position)
        self._answer_results([*results, *(item for item in self._result_watchers if item[1].task_id in changes.tasks)])
        waiting = {request for request, _ in self._result_watchers}
        self._result_watchers += [item for item in results if item[0] not in waiting and not item[0].is_claimed]
        self._wake_topic_watchers(changes.topics)

    def _wake_topic_watchers(self, topics: Iterable[str] = ()) -> None:
        """Answer who waits for one of `topics`, those that changed since the last call, or for anything if all did."""
        has_all_changed, self._all_seen = self._all_changed != self._all_seen, self._all_changed
        known, new = self._topic_watchers, self._new_watchers
        self._topic_watchers, self._new_watchers = [], []
        for number, (request, watch) in enumerate([*known, *new]):
            is_new = number >= len(known)
            changed = self._changed_of(watch, watch.positions if is_new or has_all_changed else topics)
            if changed:
                if request.claim():
                    self._answers.add(request, outcome.Value(changed))
            elif not request.is_claimed:
                self._topic_watchers.append((request, watch))

    def _changed_of(self, watch: Watch, candidates: Iterable[str]) -> frozenset[str]:
        positions = watch.positions
        return frozenset(
            topic
            for topic in candidates
            if topic in positions and max(self._changed.get(topic, 0), self._all_changed) > positions[topic]
        )

    def _answer_results(self, requests: Iterable[tuple[_Request, Results]]) -> None:
        """Answer those that have the results that they want, with one read for all."""
        requests = [item for item in requests if not item[0].is_claimed]
        if not requests:
            return
        found = self._store.results({work.task_id for _, work in requests})
        for request, work in requests:
            match found:
                case outcome.Value(records) if not work.is_answered_by(records[work.task_id]):
                    continue
                case outcome.Value(records):
                    answer: outcome.Outcome[Any] = outcome.Value(records[work.task_id])
                case error:
                    answer = error
            if request.claim():
                self._answers.add(request, answer)

    def _change_all(self) -> None:
        self._position += 1
        self._all_changed = self._position

    def _tick(self) -> None:
        """What is done by time: looking for other processes' commits, and maintenance."""
        now = time.monotonic()
        if self._store.is_serving and now >= self._next_maintenance:
            self._next_maintenance = now + _MAINTENANCE
            if self._store.maintain():
                self._change_all()
                self._wake_topic_watchers()
        if (self._topic_watchers or self._result_watchers) and now >= self._next_poll:
            self._next_poll = now + _POLL
            if self._store.changed_elsewhere():
                self._change_all()
                self._answer_results(self._result_watchers)
                self._wake_topic_watchers()
            self._result_watchers = [item for item in self._result_watchers if not item[0].is_claimed]
