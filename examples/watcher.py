"""Watch a running system: `python watcher.py "ws://127.0.0.1:8000/ws?types=task.*"`."""

import json
import sys

import trio
from trio_websocket import ConnectionClosed, HandshakeError, open_websocket_url


async def main(url: str) -> None:
    """Print every event, and every loss, until the gateway closes."""
    async with open_websocket_url(url) as socket:
        while True:
            frame = json.loads(await socket.get_message())
            if frame["t"] == "ev":  # a batch: all of it is handled before the next one is taken
                for event in frame["e"]:
                    print(event["o"], event["event_type"], event["run_id"], json.dumps(event["data"]), flush=True)
            elif frame["t"] == "gap":
                print(f"-- {frame['lost']} events were missed ({frame['why']})", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004 -- the program and its one argument
        sys.exit(__doc__)
    try:
        trio.run(main, sys.argv[1])
    except HandshakeError as error:
        sys.exit(f"the gateway cannot be reached: {error.__cause__ or error}")
    except ConnectionClosed as closed:
        sys.exit(f"the gateway has closed: {closed.reason and closed.reason.reason}")
    except KeyboardInterrupt:
        sys.exit(130)
