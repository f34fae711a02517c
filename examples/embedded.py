"""A supervised actor inside a trio app that is not ours: a line server whose connections count words.

The supervisor is one task of the app's nursery. It keeps the counter alive, which crashes at no-words.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import trio

from omniactors import Actor, ActorRef, AskFailed, Backoff, ChildExited, ChildSpec, Request, on, run_supervisor, subtree


@dataclass(frozen=True)
class Word(Request[int]):
    """Counts one word; the reply is how often it was seen."""

    text: str


class WordCounter(Actor[Word]):
    """Keeps the counts in memory, so a crash loses them: it starts again from nothing."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    @on
    async def count(self, word: Word) -> int:
        """Count a word; anything but letters is more than this actor can take."""
        if not word.text.isalpha():
            raise ValueError(f"{word.text!r} is no word")
        self.counts[word.text] = self.counts.get(word.text, 0) + 1
        return self.counts[word.text]


async def serve(counter: ActorRef[Word], stream: trio.SocketStream) -> None:
    """One connection: a line in, a line out. A crash of the actor is an answer like any other."""
    buffer = b""
    async for chunk in stream:
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            try:
                reply: object = await counter.ask(Word(line.decode()))
            except AskFailed as error:
                reply = error.__cause__
            await stream.send_all(line + f": {reply}\n".encode())


async def client(port: int, words: list[str]) -> None:
    """Send words, print the replies."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(("\n".join(words) + "\n").encode())
        await stream.send_eof()
        print(*[chunk.decode() async for chunk in stream], sep="", end="")


def report(notice: object) -> None:
    """What the tree tells; an app would log it."""
    if isinstance(notice, ChildExited):
        print(f"-- {notice.path} ended: {notice.reason}")


async def app() -> None:
    """The host."""
    async with trio.open_nursery() as nursery:
        tree = subtree(ChildSpec(WordCounter, id="words"), backoff=Backoff(initial=0.01), name="app")
        words = (await nursery.start(functools.partial(run_supervisor, emit=report), tree)).child("words")
        server = functools.partial(trio.serve_tcp, host="127.0.0.1")
        listeners = await nursery.start(server, functools.partial(serve, words), 0)
        for line in ("tea tea milk", "tea c0ffee tea", "tea"):
            await client(listeners[0].socket.getsockname()[1], line.split())
        nursery.cancel_scope.cancel()  # ends the server at once, and the supervisor in order
    print(f"{words.path} is {words.status} after {words.incarnation} lives")


if __name__ == "__main__":
    trio.run(app)
