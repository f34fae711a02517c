"""Access rules: which requests the gateway answers. Pure.

A page of another site can make a browser send requests here: its Origin betrays it, and where it
hides behind a name of its own that resolves to this machine (DNS rebinding), the Host does.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

SAFE_METHODS = frozenset({"GET", "HEAD"})
PUBLIC_PATHS = frozenset({"/", "/static/page.css", "/static/page.js", "/static/icon.svg", "/healthz"})
"""The page holds no secrets: it is public, so that it can ask for the token."""
ANY_HOST_PATHS = frozenset({"/healthz"})
"""Health checkers bring an address, a name of their own, or no Host at all, and learn nothing but that we live."""
WEBSOCKET_PATH = "/ws"

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.~-]+)?)\]|([^\s\[\]:/@,?#\\]+))(?::\d*)?")


@dataclass(frozen=True)
class Head:
    """The head of a request: method, path, the query without its "?", and the headers with names in lower case.

    `path` is decoded, `raw_path` as it was sent; `version` is that of HTTP.
    """

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    raw_path: bytes = b""
    version: str = "1.1"

    def header(self, name: str) -> str | None:
        """The value of a header, several joined by commas, None when there is none."""
        values = [value for key, value in self.headers if key == name]
        return ", ".join(values) if values else None


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered, with its HTTP status and the headers that belong to it."""

    status: int
    why: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Policy:
    """What a request is judged by: where the gateway is bound, its further names, and its token."""

    host: str
    port: int
    token: str | None = None
    allowed_hosts: tuple[str, ...] = ()

    def judge(self, head: Head) -> Refusal | None:
        """The reason not to answer, or None. At `/ws` a token may also come later, with `hello`."""
        refusal = self._judge_host(head)
        if refusal is not None:
            return refusal
        if (head.path == WEBSOCKET_PATH or head.method not in SAFE_METHODS) and not self._knows_origin(head):
            return Refusal(403, "pages of other origins may not use this gateway")
        if self.token is None or head.path in PUBLIC_PATHS:
            return None
        offered = offered_token(head)
        if offered is None and head.path == WEBSOCKET_PATH:
            return None
        if not self.accepts_token(offered):
            why = "a valid token is needed: as 'Authorization: Bearer TOKEN' or as ?token=TOKEN"
            return Refusal(401, why, (("www-authenticate", "Bearer"),))
        return None

    def accepts_token(self, offered: str | None) -> bool:
        """Whether this is the token, in a time that tells nothing about it; always when there is none."""
        if self.token is None:
            return True
        # JSON can spell half a character, which is no part of any token.
        return hmac.compare_digest((offered or "").encode(errors="surrogatepass"), self.token.encode())

    def _judge_host(self, head: Head) -> Refusal | None:
        if head.path in ANY_HOST_PATHS:
            return None
        host = head.header("host")
        name = _host_name(host)
        if name is None:
            return Refusal(400, f"the Host header must name a host, and is {host!r}")
        if not self._knows_host(name):
            how = "a name of its own is allowed with OMNIACTORS_ALLOWED_HOSTS or --allowed-host"
            return Refusal(403, f"this gateway does not answer to the name {name!r}; {how}")
        return None

    def _knows_host(self, name: str) -> bool:
        if is_loopback(name) or name in {_bare(self.host), *map(_bare, self.allowed_hosts)}:
            return True
        # Rebinding needs a name. Bound beyond loopback we may be reached at any of our addresses.
        return not is_loopback(self.host) and _is_address(name)

    def _knows_origin(self, head: Head) -> bool:
        origin = head.header("origin")
        if origin is None:
            return True
        try:
            parts = urlsplit(origin)
            port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
        except ValueError:
            return False
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            return False
        if parts.netloc.lower() == (head.header("host") or "").lower():
            return True
        ours = is_loopback(self.host) and is_loopback(parts.hostname) and port == self.port
        return ours or _bare(parts.hostname) in map(_bare, self.allowed_hosts)


def offered_token(head: Head) -> str | None:
    """The token that comes with a request: as a bearer, or as `token` in the query."""
    scheme, _, credentials = (head.header("authorization") or "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    values = parse_qs(head.query, keep_blank_values=True).get("token")
    return values[0] if values else None


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine only."""
    name = _bare(host)
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _bare(host: str) -> str:
    """A name as it is compared: in lower case, and an address in the one of its spellings that Python chooses."""
    name = host.strip().lower().removeprefix("[").removesuffix("]").rstrip(".")
    try:
        address = ipaddress.ip_address(name.replace("%25", "%"))  # a zone (RFC 6874)
    except ValueError:
        return name
    return str(getattr(address, "ipv4_mapped", None) or address)


def _host_name(authority: str | None) -> str | None:
    """The name in a Host header, without its port; None for one that makes no sense."""
    if match := _AUTHORITY.fullmatch(authority or ""):
        return _bare(match[1] or match[2]) or None
    # trio-websocket's client writes IPv6 addresses without brackets. No browser does, and no name has colons.
    address, _, port = (authority or "").rpartition(":")
    ports = (address,) if port.isdecimal() else ()
    return next((_bare(text) for text in (*ports, authority or "") if ":" in text and _is_address(text)), None)
