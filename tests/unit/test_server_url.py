"""Laws of the URL of a server: one reading, and nothing is ignored in silence."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.server_url import ServerUrl, parse_url

_LOCAL = ServerUrl(path="", host="localhost", port=6379, database=0, username="", password="", tls=None)
_TLS = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}


@pytest.mark.parametrize(
    ("url", "changed"),
    [
        ("redis://", {}),
        ("redis://h:1/7", {"host": "h", "port": 1, "database": 7}),
        ("redis://[::1]:1/7?db=2", {"host": "::1", "port": 1, "database": 2}),
        ("redis://ann@h", {"host": "h", "username": "ann"}),
        ("redis://:p%40ss@h", {"host": "h", "password": "p@ss"}),
        ("redis://a%2Fn:s%25c@h", {"host": "h", "username": "a/n", "password": "s%c"}),
        ("redis://h?username=ann&password=p%26s", {"host": "h", "username": "ann", "password": "p&s"}),
        ("unix:///run/a%20b.sock?db=3", {"path": "/run/a b.sock", "database": 3}),
        ("unix://ann:pw@/run/s", {"path": "/run/s", "username": "ann", "password": "pw"}),
        ("rediss://h", {"host": "h", "tls": _TLS}),
        ("rediss://h?ssl_check_hostname=false", {"host": "h", "tls": _TLS | {"ssl_check_hostname": False}}),
        (
            "rediss://h?ssl_cert_reqs=none",
            {"host": "h", "tls": {"ssl_cert_reqs": "none", "ssl_check_hostname": False}},
        ),
    ],
)
def test_each_part_of_a_url_is_read(url: str, changed: dict[str, object]) -> None:
    assert parse_url(url) == _LOCAL._replace(**changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis://host\udcff", "not valid UTF-8"),
        ("redis://host\n", "control characters"),
        ("http://h", "expected redis://HOST"),
        ("", "expected redis://HOST"),
        ("unix://", "expected redis://HOST"),
        ("unix://run/redis.sock", "expected redis://HOST"),
        ("redis://h?timeout=5", "unknown option timeout; the options of a URL are db, username, password, ssl_cert_r"),
        ("redis://h?ssl_cert_reqs=none", "needs TLS: write rediss://"),
        ("rediss://h?ssl_cert_reqs=never", "one of required, optional, none"),
        ("rediss://h?ssl_ca_certs=/none", "ssl_ca_certs does not exist"),
        ("redis://h?db=x", "the number of a database"),
    ],
)
def test_anything_else_is_refused_with_the_reason(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_url(url)


def test_the_files_of_tls_are_read_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    assert parse_url(f"rediss://h?ssl_ca_certs={tmp_path}/ca.pem").tls == _TLS | {"ssl_ca_certs": f"{tmp_path}/ca.pem"}


@given(password=st.text(st.characters(codec="ascii", exclude_characters="@:&="), min_size=3))
def test_an_error_never_shows_a_password(password: str) -> None:
    """A part of it may look like an option."""
    for url in (f"redis://:{password}x=secret@h", f"redis://h?password={password}secret&nothing=1"):
        shown = ""
        try:
            parse_url(url)
        except ValueError as error:
            shown = str(error)
        assert "secret" not in shown
