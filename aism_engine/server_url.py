"""The URL of a server. The asynchronous and the blocking client read it with this one parser."""

import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    from ssl import SSLContext

AMBIGUOUS_URL: Final = (
    "it can be read in more than one way; in a password, write / as %2F, # as %23, ? as %3F, % as %25, a space as %20"
)
"""Error message for a URL that must not be shown, because it is not known which part of it is the password."""
_EXPECTED: Final = "expected redis://HOST, rediss://HOST or unix:///PATH"
_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_CHOICES: Final = {"ssl_cert_reqs": ("required", "optional", "none"), "ssl_check_hostname": ("true", "false")}
"""Options with few values. The first value is the default."""
_TLS: Final = (*_CHOICES, *_FILES)
_OPTIONS: Final = ("db", "username", "password", *_TLS)


class ServerUrl(NamedTuple):
    """A server and how to log in. `path` is that of a Unix socket; if it is empty, `host` and `port` count.

    A username without a password belongs to an ACL user that is defined with `nopass`.
    """

    path: str
    host: str
    port: int
    database: int
    username: str
    password: str
    tls: dict[str, str | bool] | None
    """The options that begin with `ssl_`, as redis-py takes them; None without TLS."""


def parse_url(url: str) -> ServerUrl:
    """Parse redis://, rediss:// or unix://. Raises ValueError for anything else; the message holds no password."""
    if not url.isprintable():
        raise ValueError("it has control characters, or is not valid UTF-8")
    if not _is_unambiguous(url):
        raise ValueError(AMBIGUOUS_URL)
    parts = urlsplit(url)
    is_unix = parts.scheme == "unix"
    if parts.scheme not in {"redis", "rediss", "unix"} or (is_unix and (parts.hostname or not parts.path)):
        raise ValueError(_EXPECTED)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name, value in options.items():
        if name not in _OPTIONS:
            known = f"unknown option {name}; the options of a URL are {', '.join(_OPTIONS)}"
            raise ValueError(AMBIGUOUS_URL if "@" in parts.query else known)  # the name may be part of a password
        if name in _TLS and parts.scheme != "rediss":
            raise ValueError(f"the option {name} needs TLS: write rediss://")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ValueError(f"the option {name} is one of {', '.join(_CHOICES[name])}")
    database = options.get("db") or ("" if is_unix else parts.path.lstrip("/")) or "0"
    if not re.fullmatch("[0-9]{1,9}", database):
        raise ValueError("the option db is the number of a database")
    return ServerUrl(
        path=unquote(parts.path) if is_unix else "",
        host=unquote(parts.hostname or "localhost"),
        port=parts.port or 6379,
        database=int(database),
        username=unquote(parts.username or "") or options.get("username", ""),
        password=unquote(parts.password or "") or options.get("password", ""),
        tls=_tls_options(options) if parts.scheme == "rediss" else None,
    )


def tls_context(tls: dict[str, str | bool]) -> "SSLContext":
    """Build the context that redis-py would build from these options.

    The context always trusts the CA certificates of the system as well.
    """
    import ssl  # noqa: PLC0415  it is slow to import, and few need it

    context = ssl.create_default_context()
    context.check_hostname = bool(tls["ssl_check_hostname"])
    context.verify_mode = ssl.CERT_NONE if tls["ssl_cert_reqs"] == "none" else ssl.CERT_REQUIRED
    if "ssl_ca_certs" in tls:
        context.load_verify_locations(cafile=str(tls["ssl_ca_certs"]))
    if "ssl_certfile" in tls:
        context.load_cert_chain(str(tls["ssl_certfile"]), str(tls["ssl_keyfile"]) if "ssl_keyfile" in tls else None)
    return context


def _tls_options(options: dict[str, str]) -> dict[str, str | bool]:
    chosen: dict[str, str | bool] = {name: options[name] for name in _FILES if options.get(name)}
    for name, path in chosen.items():
        if not os.access(str(path), os.R_OK):
            raise ValueError(f"the file of the option {name} does not exist or cannot be read")
    verification = options.get("ssl_cert_reqs") or "required"
    checks_host = verification != "none" and options.get("ssl_check_hostname") != "false"
    return chosen | {"ssl_cert_reqs": verification, "ssl_check_hostname": checks_host}


def _is_unambiguous(url: str) -> bool:
    """Return whether a URL can be read in one way only.

    An unescaped / # or ? in a password ends it early, and the rest of it would be taken for a port, a database or an
    option.
    """
    if re.search(r"[\s#]", url):
        return False
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    is_database = re.fullmatch(r"/?\d*", parts.path) is not None
    return (is_database or parts.scheme == "unix") and all("=" in each for each in parts.query.split("&") if each)
