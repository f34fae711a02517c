"""TLS to Redis: the context that the `ssl_*` options of a URL ask for; verification is on unless they turn it off."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_REQUIREMENTS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}

OPTIONS = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_data",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_ciphers",
        "ssl_keyfile",
        "ssl_min_version",
        "ssl_password",
    }
)
"""redis-py's options that are honoured. OCSP is not: it needs requests of its own."""


def tls_context(options: Mapping[str, object]) -> ssl.SSLContext:
    """The context for redis-py's `ssl_*` options, as strings; raises ValueError for a value or file that cannot be."""
    given = {name.removeprefix("ssl_"): str(value) for name, value in options.items() if value is not None}
    try:
        return _context(given)
    except (OSError, ValueError, KeyError) as exc:
        names = ", ".join(sorted(options))
        raise ValueError(f"the TLS options of the Redis URL cannot be used ({names}): {exc}") from exc


def _context(given: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(
        cafile=given.get("ca_certs"), capath=given.get("ca_path"), cadata=given.get("ca_data")
    )
    requirement = _REQUIREMENTS[given.get("cert_reqs", "required").lower()]
    checks_name = given.get("check_hostname", "true").lower() not in {"false", "0", "no", "f", "n"}
    context.check_hostname = checks_name and requirement is not ssl.CERT_NONE
    context.verify_mode = requirement
    if "certfile" in given:
        context.load_cert_chain(given["certfile"], given.get("keyfile"), given.get("password"))
    if "min_version" in given:
        context.minimum_version = ssl.TLSVersion(int(given["min_version"]))
    if "ciphers" in given:
        context.set_ciphers(given["ciphers"])
    return context
