"""Reading rule: which event a file, the options and a `--content` stand for; nothing is dropped in silence.

An event file has the fields of an EventEnvelope, which are OmniDaemon's; `task_id` is another name of
`id`. When it was made and how often it was tried are the store's to say, so both are read over.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from omniactors.cli.exits import CommandError, ExitCode

if TYPE_CHECKING:
    from pathlib import Path

AS_TEXT = "to send it as text, make it a JSON string, as in {what} '\"{{...\"'"


class PayloadFile(msgspec.Struct, frozen=True, kw_only=True):
    """The payload part of a file; content is what matters, the rest may be left out."""

    content: Any = msgspec.UNSET
    webhook: str | None = None
    reply_to: str | None = None

    def override(self, options: PayloadFile) -> PayloadFile:
        """The payload with each part that `options` names as they say."""
        return PayloadFile(
            content=self.content if options.content is msgspec.UNSET else options.content,
            webhook=self.webhook if options.webhook is None else options.webhook,
            reply_to=self.reply_to if options.reply_to is None else options.reply_to,
        )


class EventFile(msgspec.Struct, frozen=True, kw_only=True):
    """An event as a file holds it; options of the command line override its parts."""

    topic: str | None = None
    payload: PayloadFile = PayloadFile()
    task_id: str | None = None
    id: str | None = None
    tenant_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    source: str | None = None
    created_at: Any = None
    delivery_attempts: Any = None

    def override(self, options: EventFile) -> EventFile:
        """The event with each part that `options` names as they say; its id is in `task_id`."""

        def chosen(said: str | None, held: str | None) -> str | None:
            return held if said is None else said

        return EventFile(
            topic=chosen(options.topic, self.topic),
            payload=self.payload.override(options.payload),
            task_id=chosen(options.task_id, chosen(self.task_id, self.id)),
            tenant_id=chosen(options.tenant_id, self.tenant_id),
            correlation_id=chosen(options.correlation_id, self.correlation_id),
            causation_id=chosen(options.causation_id, self.causation_id),
            source=chosen(options.source, self.source),
        )


def read_event(path: Path) -> EventFile:
    """The event in the file, "-" for stdin; raises CommandError with what is wrong in it."""
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}", ExitCode.USAGE) from error
    try:
        document = msgspec.json.decode(data)
        event = msgspec.convert(document, EventFile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CommandError(f"{path} is not an event in JSON: {error}", ExitCode.USAGE) from error
    _refuse_unknown(document, EventFile, f"{path} has")
    _refuse_unknown(document.get("payload", {}), PayloadFile, f"the payload in {path} has")
    if event.id is not None and event.task_id is not None and event.id != event.task_id:
        raise CommandError(f"{path} has two ids: id and task_id mean the same, give one", ExitCode.USAGE)
    return event


def _refuse_unknown(fields: dict[str, Any], struct: type[msgspec.Struct], where: str) -> None:
    allowed = struct.__struct_fields__
    unknown = sorted(set(fields) - set(allowed))
    if unknown:
        sentence = f"{where} unknown fields: {', '.join(unknown)}; allowed are {', '.join(allowed)}"
        raise CommandError(sentence, ExitCode.USAGE)


def parse_content(text: str, what: str = "--content") -> object:
    """The JSON value in `text`, the value of the option or argument `what`, or the text itself when it is plain words.

    Raises CommandError when the text was meant as JSON and is none: it begins as an object, a list or
    a string does, or is a number that JSON cannot hold (NaN, Infinity).
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        why = _why_no_json(text, error)
    except UnicodeEncodeError as error:
        raise CommandError(f"{what} is not UTF-8 at character {error.start}", ExitCode.USAGE) from error
    if why is None:
        return text
    raise CommandError(f"{what} is no JSON: {why}; {AS_TEXT.format(what=what)}", ExitCode.USAGE)


def _why_no_json(text: str, error: Exception) -> str | None:
    """What is wrong at which place of a text that was meant as JSON; None for plain words."""
    constants: list[str] = []
    try:
        # The standard library's parser says line and column, and takes NaN, as who writes that expects.
        json.loads(text, parse_constant=constants.append)
    except json.JSONDecodeError as flaw:
        is_meant = text.lstrip(" \t\r\n\ufeff").startswith(("{", "[", '"'))
        return f"{flaw.msg.removesuffix(' at')}, line {flaw.lineno} column {flaw.colno}" if is_meant else None
    except (RecursionError, ValueError) as flaw:
        return str(flaw)
    reason = str(error).removeprefix("JSON is malformed: ")
    return f"{constants[0]} has no form in it, {reason}" if constants else reason
