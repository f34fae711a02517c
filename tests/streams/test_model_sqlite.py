"""Any script of operations, crashes and clock steps goes in SQLite as in the model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import example, given

from tests.streams.model_scripts import DEDUPE_WINDOW, LIMITS, RELEASED_TWICE, SCRIPTS, SHORT_RESULT, examples, play
from tests.streams.model_sqlite import FileSubject, MemorySubject

if TYPE_CHECKING:
    from tests.streams.model_steps import AnyStep


@examples(60)
@given(SCRIPTS, LIMITS)
@example(SHORT_RESULT, None)
@example(RELEASED_TWICE, None)
def test_memory_goes_as_the_model(script: list[AnyStep], limit: int | None) -> None:
    play(MemorySubject(dedupe_window=DEDUPE_WINDOW, stream_limit=limit), script, limit)


@examples(60)
@given(SCRIPTS, LIMITS)
@example(SHORT_RESULT, None)
@example(RELEASED_TWICE, None)
def test_a_file_goes_as_the_model(script: list[AnyStep], limit: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        play(FileSubject(Path(folder) / "omni.db", dedupe_window=DEDUPE_WINDOW, stream_limit=limit), script, limit)
