"""Laws of the settings: precedence of the sources, problems, the reference file, passwords."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import convert, to_builtins

from aism_engine.config import descriptions, load_settings, render_reference
from aism_engine.domain.policy import LivenessLimits, LivenessSettings
from aism_engine.errors import ConfigError
from aism_engine.redact import redacted
from aism_engine.settings import LeaseSettings, Settings

KEYS = sorted(descriptions())
COUNTS = st.none() | st.integers(1, 1_000_000_000)


def variable(key: str) -> str:
    return f"AISM_{key.upper().replace('.', '__')}"


def problems_of(path: Path | None = None, environ: dict[str, str] | None = None, **overrides: object) -> list[str]:
    flags = {name.replace("__", "."): value for name, value in overrides.items()}
    with pytest.raises(ConfigError) as caught:
        load_settings(path, environ=environ or {}, overrides=flags)
    return list(caught.value.problems)


DURATION_EXPECTED = (
    "expected a duration like 500ms, 30s, 10m, 2h or 1d, or a number of seconds, more than 0 and at most 1000000000s"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "engine.toml"


def test_without_sources_the_defaults_are_in_force() -> None:
    loaded = load_settings(environ={})
    assert loaded.settings == Settings()
    assert loaded.sources == dict.fromkeys(KEYS, "default")


def test_environment_is_that_of_the_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AISM_HTTP__PORT", "0")
    assert load_settings().settings.http.port == 0


@given(in_file=COUNTS, in_environment=COUNTS, in_flags=COUNTS)
def test_last_source_that_sets_a_setting_wins(
    in_file: int | None, in_environment: int | None, in_flags: int | None
) -> None:
    """The order is default, file, environment, flag. The winner is also recorded as the source."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "engine.toml")
        path.write_text("" if in_file is None else f"[response_consumer]\nbatch_messages = {in_file}\n")
        environ = {} if in_environment is None else {"AISM_RESPONSE_CONSUMER__BATCH_MESSAGES": str(in_environment)}
        loaded = load_settings(path, environ=environ, overrides={"response_consumer.batch_messages": in_flags})
    given_values = [
        (512, "default"),
        (in_file, f"file {path}"),
        (in_environment, "env AISM_RESPONSE_CONSUMER__BATCH_MESSAGES"),
        (in_flags, "flag"),
    ]
    expected = [(value, source) for value, source in given_values if value is not None][-1]
    assert (
        loaded.settings.response_consumer.batch_messages,
        loaded.sources["response_consumer.batch_messages"],
    ) == expected


def test_long_variable_of_the_server_url_overrides_the_short_one() -> None:
    """AISM_REDIS_URL sets redis.url, unless AISM_REDIS__URL is set."""
    short = {"AISM_REDIS_URL": "redis://short"}
    loaded = load_settings(environ=short)
    assert (loaded.settings.redis.url, loaded.sources["redis.url"]) == ("redis://short", "env AISM_REDIS_URL")
    loaded = load_settings(environ=short | {"AISM_REDIS__URL": "redis://long"})
    assert (loaded.settings.redis.url, loaded.sources["redis.url"]) == ("redis://long", "env AISM_REDIS__URL")


def test_other_variables_are_ignored() -> None:
    """A variable of the settings has the prefix `AISM_` and contains `__`."""
    environ = {"AISM_AGENT_ID": "a-1", "AISM_TEST_SERVER": "x", "AISM_": "", "OTHER__KEY": "1"}
    assert load_settings(environ=environ).settings == Settings()


def test_text_is_converted_to_the_type_of_the_setting() -> None:
    """The environment and flags contain text: numbers, booleans, and tables as JSON."""
    environ = {
        "AISM_LEASE__TTL": "7",
        "AISM_HTTP__ENABLED": "false",
        "AISM_REDIS__PROTOCOL": "3",
        "AISM_REDIS__PREFIX": "42",
        "AISM_LIVENESS__BY_TYPE": '{"scribe": {"silent_after": 60, "lost_after": 180}}',
    }
    settings = load_settings(
        environ=environ, overrides={"machines.by_type": '{"scribe": "open"}', "protocol.publish_events": False}
    ).settings
    assert (settings.lease.ttl, settings.http.enabled, settings.redis.protocol) == (7.0, False, 3)
    assert settings.redis.prefix == "42"
    assert settings.liveness.by_type == {"scribe": LivenessLimits(silent_after=60.0, lost_after=180.0)}
    assert (settings.machines.by_type, settings.protocol.publish_events) == ({"scribe": "open"}, False)


def test_a_duration_is_written_alike_in_every_source(file: Path) -> None:
    """With a unit, or as a number of seconds; also in a table."""
    by_type = 'scribe = { silent_after = "90s", lost_after = "5m" }'
    file.write_text(f'[lease]\nttl = "10s"\nrenew_interval = "500ms"\n[liveness.by_type]\n{by_type}\n')
    environ = {"AISM_COMMANDS__TTL": "2h", "AISM_COMMANDS__TIMEOUT": "90"}
    settings = load_settings(file, environ=environ, overrides={"commands.ack_timeout": "1.5s"}).settings
    assert (settings.lease.ttl, settings.lease.renew_interval) == (10.0, 0.5)
    assert settings.liveness.by_type == {"scribe": LivenessLimits(silent_after=90.0, lost_after=300.0)}
    commands = settings.commands
    assert (commands.ttl, commands.timeout, commands.ack_timeout) == (7200.0, 90.0, 1.5)


def test_file_must_have_the_right_types(file: Path) -> None:
    """TOML distinguishes numbers from strings; only an integer is accepted for a float."""
    file.write_text('[lease]\nttl = 7\n[http]\nport = "80"\n[redis]\nprefix = 42\n')
    assert problems_of(file) == [
        f"file {file}: http.port: expected a whole number, got '80'",
        f"file {file}: redis.prefix: expected text, got 42",
    ]


def test_all_problems_of_all_sources_are_reported_at_once(file: Path) -> None:
    """One line each, with source, key, expected and actual value; also for a value that a later source overrides."""
    unknown = "batch_mesages"
    file.write_text(
        f"[lease]\nttl = -1\n[leese]\n[response_consumer]\n{unknown} = 1\n"
        "[logs]\nlevel = 'loud'\n[liveness.by_type]\nscribe = 3\n"
    )
    environ = {
        "AISM_LEASE__TTL": "5",
        "AISM_HTTP__PROT": "1",
        "AISM_LOGS__QUEUE_SIZE": "many",
        "AISM_MACHINES__BY_TYPE": "{",
    }
    assert problems_of(file, environ, redis__protocol=4, sampler__pause=1) == [
        f"file {file}: lease.ttl: {DURATION_EXPECTED}, got -1",
        f"file {file}: leese: unknown section, did you mean lease?",
        f"file {file}: response_consumer.{unknown}: unknown setting, did you mean response_consumer.batch_messages?",
        f"file {file}: logs.level: expected 'debug' or 'info' or 'warning' or 'error', got 'loud'",
        f"file {file}: liveness.by_type.scribe: expected a table, got 3",
        "env AISM_HTTP__PROT: http.prot: unknown setting, did you mean http.port?",
        "env AISM_LOGS__QUEUE_SIZE: logs.queue_size: expected a whole number, got 'many'",
        "env AISM_MACHINES__BY_TYPE: machines.by_type: expected a table, got '{'",
        "flag: redis.protocol: expected 2 or 3, got 4",
        "flag: sampler.pause: unknown setting, did you mean sampler.label_values?",
    ]


def test_section_that_is_not_a_table_is_a_problem(file: Path) -> None:
    file.write_text("redis = 3\n")
    assert problems_of(file) == [f"file {file}: redis: expected a table, got 3"]


def test_syntax_error_is_reported_with_its_line(file: Path) -> None:
    """The other sources are still checked."""
    file.write_text("[http]\nport = \n")
    broken, flag = problems_of(file, http__port=-1)
    assert broken.startswith(f"file {file}: not TOML: ")
    assert "line 2" in broken
    assert flag == "flag: http.port: expected a whole number, at least 0, got -1"


def test_unreadable_file_is_a_problem(file: Path) -> None:
    """A missing file, a directory, or a file that is not UTF-8."""
    assert problems_of(file) == [f"file {file}: cannot be read: No such file or directory"]
    assert problems_of(file.parent) == [f"file {file.parent}: cannot be read: Is a directory"]
    file.write_bytes(b"\xff")
    assert problems_of(file) == [f"file {file}: not TOML: text that is not valid UTF-8"]


@pytest.mark.parametrize("text", ["inf", "nan", "0", "-1", "1e300"])
def test_duration_must_be_positive_and_finite(text: str) -> None:
    """A timer that never waits, or waits for ever, would break the engine."""
    assert problems_of(environ={"AISM_LEASE__TTL": text})[0].startswith(
        f"env AISM_LEASE__TTL: lease.ttl: {DURATION_EXPECTED}, got {text!r}"
    )


@pytest.mark.parametrize("prefix", ["", "a b", "a\n", "a*", "a" * 65])
def test_prefix_must_be_usable_in_keys(prefix: str) -> None:
    """At most 64 letters, digits and `._{}:-`."""
    assert problems_of(redis__prefix=prefix)[0].startswith("flag: redis.prefix: expected ")


def test_lease_is_renewed_more_than_twice_before_it_expires(file: Path) -> None:
    """`renew_interval` is less than half of `ttl`. The problem names every source of the two."""
    file.write_text("[lease]\nttl = 2.0\n")
    assert problems_of(file) == [f"file {file}: lease.renew_interval: expected less than half of ttl (2s), got 1s"]
    assert problems_of(file, {"AISM_LEASE__RENEW_INTERVAL": "3"}) == [
        (
            f"env AISM_LEASE__RENEW_INTERVAL, file {file}: "
            "lease.renew_interval: expected less than half of ttl (2s), got 3s"
        )
    ]
    with pytest.raises(ValueError, match="renew_interval"):
        LeaseSettings(ttl=1.0)


def test_agent_is_silent_before_it_is_lost(file: Path) -> None:
    """`lost_after` is more than `silent_after`, also in the limits of one agent type."""
    file.write_text("[liveness]\nsilent_after = 60\n")
    assert problems_of(file) == [f"file {file}: liveness.lost_after: expected more than silent_after (1m), got 45s"]
    file.write_text("[liveness.by_type.scribe]\nsilent_after = 3\nlost_after = 3\n")
    assert problems_of(file) == [
        f"file {file}: liveness.by_type.scribe.lost_after: expected more than silent_after (3s), got 3s"
    ]


def test_limits_of_a_type_must_be_complete(file: Path) -> None:
    """A missing limit could mean the default or that of all agents, so it is a problem."""
    file.write_text("[liveness.by_type.scribe]\nlost_afte = 3\nsilent_after = 'x'\n")
    assert problems_of(file) == [
        f"file {file}: liveness.by_type.scribe.lost_afte: unknown setting, did you mean lost_after?",
        f"file {file}: liveness.by_type.scribe.lost_after: missing",
        f"file {file}: liveness.by_type.scribe.silent_after: {DURATION_EXPECTED}, got 'x'",
    ]


def test_general_limits_have_the_interface_of_those_of_a_type() -> None:
    """A reader calls `by_type.get(type, settings)`."""
    assert isinstance(LivenessSettings(), LivenessLimits)


def test_problem_shows_no_password() -> None:
    assert problems_of(environ={"AISM_REDIS_URL": "http://me:s3cret@host"}) == [
        (
            "env AISM_REDIS_URL: redis.url: expected a URL that begins with redis://, rediss:// or unix://, "
            "got 'http://me:***@host'"
        )
    ]


@pytest.mark.parametrize("url", ["me:s3cret@host", ":s3cret@host:6379/0"])
def test_problem_shows_no_password_of_a_url_without_scheme(url: str) -> None:
    (problem,) = problems_of(environ={"AISM_REDIS_URL": url})
    assert "s3cret" not in problem


@pytest.mark.parametrize(
    "url",
    [
        *("redis://:s3/cret@h", "redis://:s3#cret@h:1", "redis://me:s3?cret@h", "redis://me:s3 cret@h"),
        *("redis://me:3/cret@h", "redis://me:3#cret@h", "redis://me:3?cret@h", "redis://h:s3cret", "redis://h/s3cret"),
    ],
)
def test_password_with_unescaped_delimiters_is_refused_and_not_shown(url: str) -> None:
    """A part of it would be read as a port, a database or an option, and be shown in a traceback."""
    (problem,) = problems_of(environ={"AISM_REDIS_URL": url})
    assert "%2F" in problem
    assert "cret" not in problem


@pytest.mark.parametrize(
    "url",
    [
        *("redis://h", "redis://h/", "redis://h:1/7", "rediss://me:s%2Fc%23r%3Ft@h:1/0?ssl_cert_reqs=none&password=x"),
        *("redis://[::1]:1/0", "redis://:p@ss@h", "unix:///run/redis.sock?db=3", "unix://me:p@/run/redis.sock"),
    ],
)
def test_unambiguous_url_is_accepted(url: str) -> None:
    assert load_settings(environ={"AISM_REDIS_URL": url}).settings.redis.url == url


@given(key=st.sampled_from(KEYS), text=st.text() | st.sampled_from(["{}", "[" * 100_000, '{"a": {}}', "null", "1e999"]))
def test_any_text_is_accepted_or_refused_with_its_key(key: str, text: str) -> None:
    """Every problem names the variable and the key."""
    problems: tuple[str, ...] = ()
    try:
        load_settings(environ={variable(key): text})
    except ConfigError as error:
        problems = error.problems
    expected = (
        f"env {variable(key)}: {key}",
        f"env {variable(key)}: {key.partition('.')[0]}.",
    )  # two settings that contradict each other
    assert [problem for problem in problems if not problem.startswith(expected)] == []


def test_reference_file_is_up_to_date() -> None:
    """`make config` generates config/engine.toml."""
    shipped = Path(__file__).parents[2] / "config" / "engine.toml"
    assert shipped.read_text(encoding="utf-8") == render_reference()


def test_reference_sets_every_setting_to_its_default(file: Path) -> None:
    file.write_text(render_reference(), encoding="utf-8")
    loaded = load_settings(file, environ={})
    assert loaded.settings == Settings()
    assert loaded.sources == dict.fromkeys(KEYS, f"file {file}")


def test_defaults_are_valid() -> None:
    assert convert(to_builtins(Settings()), Settings) == Settings()


def test_every_setting_has_a_short_description() -> None:
    """A description fits into one line of the reference file."""
    assert [key for key, text in descriptions().items() if not 0 < len(text) <= 100 or "\n" in text] == []


@given(
    user=st.text("abc%40", max_size=8),
    password=st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), min_size=1),
)
def test_redaction_removes_every_password(user: str, password: str) -> None:
    """Also one with `@`, `:` or `/`."""
    assert redacted(f"redis://{user}:{password}@host:6379/0") == f"redis://{user}:***@host:6379/0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://me@host:6379/0", "redis://me@host:6379/0"),
        ("redis://me@corp:pw@host", "redis://me@corp:***@host"),
        ("redis://host/0?password=pw&db=1", "redis://host/0?password=***&db=1"),
        ("from redis://:a@x to rediss://u:b@y, b@c", "from redis://:***@x to rediss://u:***@y, b@c"),
        ("mail me@host: 1", "mail me@host: 1"),
    ],
)
def test_redaction_removes_only_the_password(text: str, expected: str) -> None:
    """User, host, port and the surrounding text remain."""
    assert redacted(text) == expected


def test_redaction_takes_linear_time() -> None:
    """A hostile megabyte is read once, not once per URL: quadratic time would exceed the timeout of the test."""
    hostile = "://a:" * 200_000
    assert redacted(hostile) == hostile


def test_a_list_in_the_environment_is_json() -> None:
    loaded = load_settings(environ={"AISM_AGENTS__AUTO_REGISTER": '["heartbeat", "request"]'})
    assert loaded.settings.agents.auto_register == ("heartbeat", "request")
    with pytest.raises(ConfigError, match="expected 'heartbeat' or 'response' or 'channel' or 'request', got"):
        load_settings(environ={"AISM_AGENTS__AUTO_REGISTER": '["beat"]'})
