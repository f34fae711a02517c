"""OmniDaemon as it is when nothing is set: events in Redis, results in a file that is written anew for each."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.benchmarks.anchors import with_omnidaemon
from tests.benchmarks.anchors.program import main


async def pipeline(url: str, tasks: int) -> float:
    """Tasks per second; the more there are, the slower."""
    with tempfile.TemporaryDirectory() as folder:
        return await with_omnidaemon.pipeline(url, tasks, with_omnidaemon.file_store(Path(folder)))


if __name__ == "__main__":
    main(pipeline, with_omnidaemon.publish)
