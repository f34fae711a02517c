"""Redaction rule: what of a text may be shown, when the text may hold a password.

Whatever shows a text that others wrote (errors, tracebacks, URLs) passes it through `redact`: events on
the bus, lines of the log, results, dead letters, listings, the page.
"""

from __future__ import annotations

import re

HIDDEN = "***"

_NAMED = (
    r"(?:password|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|signature|sig|credentials?"
    r"|authorization|cookie)"
)

_QUOTED = r"b?(?:\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|\\+[\"'][^\"'\\]*\\+[\"'])"
"""A text as Python or JSON prints it, also inside another one, where its quotes are escaped."""

_HIDE: tuple[tuple[re.Pattern[str], str], ...] = (
    # The user information of a URL: up to the last @ before its host ends. Of a password also what should have been
    # escaped, as `/`; but host:port/path?mail=a@b is none.
    (re.compile(r"(?<=://)[^/?#\s:@\[]{0,256}:(?!\d{1,5}[/?#])[^\s<>]{1,512}@"), f"{HIDDEN}@"),
    (re.compile(r"(?<=://)[^/?#\s'\"<>]*@"), f"{HIDDEN}@"),
    # name=value, in the query of a URL, a command line or a call.
    (re.compile(rf"(?i)({_NAMED}=)(?:{_QUOTED}|[^\s&#;,'\")\]}}]+)"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b(auth=)\([^()]*\)"), rf"\1{HIDDEN}"),
    # "name": "value", in a map or a list of pairs that was printed.
    (re.compile(rf"(?i)({_NAMED}\\*(['\"])\s*:\s*)(?:{_QUOTED}|-?\d+)"), rf"\1\2{HIDDEN}\2"),
    (re.compile(rf"(?i)(\(b?['\"][\w-]{{0,40}}{_NAMED}(['\"]),\s*){_QUOTED}"), rf"\1\2{HIDDEN}\2"),
    # Name: value, in a header that was printed.
    (
        re.compile(
            r"(?i)\b((?:[\w-]{0,40}-(?:token|key|secret|signature)|authorization|cookie|passw(?:or)?d|pwd|passphrase|secret)\s*:\s*)"
            r"[^\s'\"][^\r\n'\"]*"
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"\b(Bearer|Basic)\s+(?=\S*[\dA-Z=])[\w.~+/=-]{8,}"), rf"\1 {HIDDEN}"),
)

_HINT = re.compile(rf"(?i)://|{_NAMED}|\bauth=|\b(?:bearer|basic)\b")


def redact(text: str) -> str:
    """The text without the passwords, tokens and keys that it shows."""
    if _HINT.search(text) is None:
        return text
    for pattern, replacement in _HIDE:
        text = pattern.sub(replacement, text)
    return text
