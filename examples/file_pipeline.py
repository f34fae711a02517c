"""A pipeline over real files: file.uploaded -> file.scanned -> file.indexed, and a report at the end.

The events are in the embedded store: after a kill, the next run also ends what the last one left.
One run at a time in a folder: two would share the work, and each wait for what the other has done.
"""

from __future__ import annotations

import argparse
import sysconfig
import time
import uuid
from itertools import islice
from pathlib import Path

import trio
from file_reading import uris
from file_report import write_report
from file_run import Librarian, Run
from file_stages import Indexer, Scanner
from rich.console import Console
from rich.progress import Progress

from omniactors import EventEnvelope, OmniActors, PayloadBase


async def process(root: Path, files: list[str], progress: Progress) -> Run:
    """Send the files through the stages; returns when each of them is done or rejected."""
    began = time.perf_counter()
    run = Run(root, run_id=str(uuid.uuid4()), published=len(files))
    bar = progress.add_task("files", total=len(files))
    omni = OmniActors()
    omni.add(Scanner)
    omni.add(Indexer)
    omni.add(Librarian, run)
    async with omni, omni.bus.subscribe(run.run_id) as changes:
        payloads = [PayloadBase(content={"uri": uri}) for uri in files]
        await omni.publish_batch(
            [EventEnvelope(topic="file.uploaded", payload=one, correlation_id=run.run_id) for one in payloads]
        )
        while run.accounted < run.published:
            # The bus may drop events: it says when to look, and the store says what is so.
            await changes.receive_batch()
            for topic in ("file.uploaded", "file.scanned", "file.indexed"):
                run.note_rejected(await omni.streams.dlq(topic, limit=100_000))
            progress.update(bar, completed=run.accounted)
    run.seconds = time.perf_counter() - began
    return run


def main() -> None:
    """Read the arguments, run, and say where the report is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--limit", type=int, default=300, help="how many files at most (default: 300)")
    parser.add_argument("--report", type=Path, default=Path("file-report.md"), help="default: file-report.md")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir() or arguments.limit < 1:
        parser.error(f"{arguments.folder} must be a folder, and --limit at least 1")
    root = arguments.folder.resolve()
    with Progress(console=Console(stderr=True)) as progress:
        run = trio.run(process, root, list(islice(uris(root), arguments.limit)), progress)
    write_report(run, arguments.report)
    print(f"{run.published} published = {len(run.done)} indexed + {len(run.rejected)} rejected")
    print(f"report: {arguments.report.resolve()}")


if __name__ == "__main__":
    main()
