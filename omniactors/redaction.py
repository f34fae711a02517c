"""Redaction rule: what of a text may be shown, when the text may hold a password.

Whatever shows a text that others wrote (errors, tracebacks, URLs) passes it through `redact`: events on
the bus, lines of the log, results, dead letters, listings, the page.
"""

from __future__ import annotations

import re

HIDDEN = "***"

_NAMED = r"(?:password|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|signature|sig|credentials?)"

_HIDE: tuple[tuple[re.Pattern[str], str], ...] = (
    # The user information of a URL: up to the last @ before its host ends.
    (re.compile(r"(?<=://)[^/?#\s'\"<>]*@"), f"{HIDDEN}@"),
    # name=value, in the query of a URL, a command line or a call.
    (re.compile(rf"(?i)({_NAMED}=)(?:\"[^\"]*\"|'[^']*'|[^\s&#;,'\")\]}}]+)"), rf"\1{HIDDEN}"),
    # "name": "value", in a map that was printed.
    (
        re.compile(rf"(?i)((?:{_NAMED}|authorization|cookie)(['\"])\s*:\s*b?)(?:\"[^\"]*\"|'[^']*')"),
        rf"\1\2{HIDDEN}\2",
    ),
    # Name: value, in a header that was printed.
    (re.compile(r"(?i)\b(authorization|cookie|api-key|password)(\s*:\s*)[^\s'\"][^\r\n'\"]*"), rf"\1\2{HIDDEN}"),
)

_HINT = re.compile(rf"(?i)://|{_NAMED}|authorization|cookie")


def redact(text: str) -> str:
    """The text without the passwords, tokens and keys that it shows."""
    if _HINT.search(text) is None:
        return text
    for pattern, replacement in _HIDE:
        text = pattern.sub(replacement, text)
    return text
