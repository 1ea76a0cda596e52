"""The deployment files agree with the engine.

YAML files are read as text, because a YAML parser is not among the requirements. A test that needs a tool which is not
installed is skipped, and names the package.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics import MetricWrapperBase
from redis.asyncio import Redis

from aism_engine.clock import SystemClock
from aism_engine.metrics import Metrics
from aism_engine.settings import Settings
from aism_engine.store.client import NamingRedis
from aism_engine.store.keys import Keys
from aism_engine.store.store import Store

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy/systemd/aism-engine.service"
PROMETHEUS = ROOT / "deploy/prometheus"
ALERTS = (PROMETHEUS / "aism-alerts.yml").read_text(encoding="utf-8")
RULES = (PROMETHEUS / "aism-rules.yml").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETTINGS = Settings()
EXECUTABLE = "/opt/aism/bin/aism-engine"


def run(*command: str | Path, package: str = "", stdin: str = "") -> str:
    """Run a tool, which must succeed, and return its output. Skip the test if it is not installed."""
    if package and shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed: apt-get install {package}")
    ended = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, check=False)
    output = ended.stdout + ended.stderr
    assert ended.returncode == 0, output
    return output


def find(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    assert match is not None, f"{pattern} does not match"
    return match[1]


# --- the wheel and the image ------------------------------------------------------------------------------------------


def test_the_wheel_contains_machines_and_lua_scripts(tmp_path: Path) -> None:
    """The engine works when installed, not only from a checkout."""
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir")
    run(*pip, tmp_path, ROOT)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for path in (*(ROOT / "config/machines").glob("*.toml"), *(ROOT / "aism_engine/store/lua").rglob("*.lua")):
        assert sum(name.endswith(f"/{path.name}") for name in names) == 1, path.name


def test_the_base_image_has_a_supported_python() -> None:
    """The default of PYTHON_IMAGE satisfies requires-python, and compose has the same default."""
    image = find(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE)
    least = find(r"^>=([\d.]+)$", PYPROJECT["project"]["requires-python"])
    assert numbers(find(r"^python:([\d.]+)", image)) >= numbers(least)
    assert find(r"\$\{AISM_PYTHON_IMAGE:-(.+)\}", COMPOSE) == image


def test_the_build_backend_of_the_image_is_locked() -> None:
    """Each package that builds our wheel in the image is in dev.lock."""
    names = find(r"/\^\(([a-z|-]+)\)==/", DOCKERFILE).split("|")
    locked = re.findall(r"^([a-z-]+)==", (ROOT / "requirements/dev.lock").read_text(encoding="utf-8"), re.MULTILINE)
    assert PYPROJECT["build-system"]["build-backend"].startswith(f"{names[0]}.")
    assert set(names) <= set(locked)


def test_all_files_use_one_http_port() -> None:
    """The image exposes, Compose publishes and Prometheus scrapes the default of http.port."""
    port = str(SETTINGS.http.port)
    assert find(r"^EXPOSE (\d+)$", DOCKERFILE) == port
    assert find(r"AISM_HTTP_PORT:-(\d+)\}:\1", COMPOSE) == port
    assert find(r"localhost:(\d+)", (PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8")) == port


def test_health_checks_use_the_configuration_of_the_engine() -> None:
    """The health checks of the image and of Compose are valid commands, with the configuration of the engine."""
    running = json.loads(find(r"^CMD (\[.+\])$", DOCKERFILE))
    for pattern, text in (
        (r"HEALTHCHECK .*\\\n +CMD (\[.+\])$", DOCKERFILE),
        (r'test: (\["CMD", "aism.+\])$', COMPOSE),
    ):
        program, command, *options = [word for word in json.loads(find(pattern, text)) if word != "CMD"]
        known = run(Path(sys.executable).with_name(program), command, "--help")
        assert {option for option in options if option.startswith("--")} <= set(re.findall(r"--[a-z-]+", known))
        assert options[-2:] == running[-2:] == ["--config", "/etc/aism/engine.toml"]


def test_service_managers_wait_longer_than_the_shutdown_timeout() -> None:
    """No service manager kills an engine that finishes its last commit."""
    longest = SETTINGS.supervisor.shutdown_timeout
    assert int(find(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(encoding="utf-8"))) > longest
    assert int(find(r"stop_grace_period: (\d+)s$", COMPOSE)) > longest


def test_the_archive_directory_is_the_same_in_systemd_and_docker() -> None:
    """The StateDirectory of the unit exists in the image and belongs to its user, so that a volume is writable."""
    directory = find(r"^StateDirectory=(.+)$", UNIT.read_text(encoding="utf-8"))
    user = find(r"useradd .* (\w+) \\$", DOCKERFILE)
    assert find(rf"install -d -o {user} -g {user} -m 700 (\S+)$", DOCKERFILE) == f"/var/lib/{directory}"


@pytest.mark.parametrize("text", [DOCKERFILE, UNIT.read_text(encoding="utf-8")], ids=["image", "unit"])
def test_a_dns_lookup_ends_within_the_connect_timeout(text: str) -> None:
    """The thread of a lookup without a reply is free for the next attempt to connect."""
    seconds, attempts = (int(find(rf"RES_OPTIONS=.*\b{option}:(\d+)", text)) for option in ("timeout", "attempts"))
    assert seconds * attempts <= SETTINGS.redis.connect_timeout


@pytest.mark.parametrize("profile", [(), ("--profile", "demo")])
def test_the_compose_file_is_valid(profile: tuple[str, ...]) -> None:
    run("docker-compose", *profile, "config", "--quiet", package="docker-compose")


# --- systemd ----------------------------------------------------------------------------------------------------------


def test_the_unit_starts_the_engine_with_valid_options() -> None:
    """ExecStart is a valid command line of `aism-engine`, and the image has the same one."""
    command, *options = find(r"^ExecStart=(.+)$", UNIT.read_text(encoding="utf-8")).split()
    assert command == EXECUTABLE
    assert find(r"^CMD (\[.+\])$", DOCKERFILE) == str(options).replace("'", '"')
    known = run(Path(sys.executable).with_name("aism-engine"), options[0], "--help")
    assert {option for option in options if option.startswith("--")} <= set(re.findall(r"--[a-z-]+", known))


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` prints nothing. The executable, which is not installed here, is replaced."""
    assert run("systemd-analyze", "verify", installed(tmp_path), package="systemd") == ""


def test_the_unit_is_sandboxed(tmp_path: Path) -> None:
    """The exposure level computed by systemd is at most 1.5 of 10."""
    output = run("systemd-analyze", "security", "--offline=true", "--no-pager", installed(tmp_path), package="systemd")
    assert float(find(r"Overall exposure level for aism-engine.service: ([\d.]+)", output)) <= 1.5


def installed(folder: Path) -> Path:
    unit = folder / UNIT.name
    unit.write_text(UNIT.read_text(encoding="utf-8").replace(EXECUTABLE, sys.executable), encoding="utf-8")
    return unit


# --- Prometheus -------------------------------------------------------------------------------------------------------


def test_queries_use_existing_metrics_and_labels() -> None:
    """Alerts, panels and recording rules follow when a metric is renamed."""
    known = {**Metrics().registry._names_to_collectors}
    for query in (*expressions(), *recorded().values(), *queries()):
        used = re.findall(r"(?<!:)\b(aism_\w+)(?:\{([^}]*)\})?", query)
        for name, labels in used:
            collector = known.get(name)
            assert isinstance(collector, MetricWrapperBase), name
            assert set(re.findall(r"(\w+)!?=", labels)) <= {*collector._labelnames, "fleet"}, (name, labels)


def test_every_alert_has_a_panel() -> None:
    """The dashboard shows the metrics of each alert, so that an operator sees since when, and how bad it is."""
    shown = "\n".join(queries())
    for name, expression in recorded().items():
        shown = shown.replace(name, expression)
    for expression in expressions():
        assert metrics(expression)
        assert metrics(expression) <= metrics(shown)


def test_every_recording_rule_and_alert_has_a_promtool_test() -> None:
    names = re.findall(r"- alert: (\S+)", ALERTS) + list(recorded())
    tests = Path(__file__).with_name("alerts.test.yml").read_text(encoding="utf-8")
    assert [name for name in names if not re.search(rf"{name}\b", tests)] == []


async def test_alerts_use_queues_that_are_measured(redis_client: Redis, prefix: str) -> None:
    """Each `queue` of an alert is one of those that the sampler reads."""
    client = NamingRedis(connection_pool=redis_client.connection_pool)
    measured = await Store(client, Keys(prefix), SystemClock()).lengths()
    assert set(re.findall(r'queue="(\w+)"', "\n".join(expressions()))) <= set(measured)


def test_every_alert_has_a_severity_a_summary_and_a_first_step() -> None:
    """The description of each alert ends with what to do first."""
    for alert in re.split(r"^ +- alert: ", ALERTS, flags=re.MULTILINE)[1:]:
        assert find(r"severity: (\w+)", alert) in {"critical", "warning"}
        assert find(r'summary: "(.+)"$', alert)
        assert find(r'description: ".+ First: (.+)\."$', alert)


def test_every_alert_links_to_its_section_of_the_runbook() -> None:
    """Alerts and sections correspond one to one, in the same order."""
    runbook = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    links = re.findall(r'- alert: (\w+)\n(?:.*\n)*?          runbook: "docs/runbook.md#(\w+)"', ALERTS)
    assert (
        [name for name, _ in links]
        == re.findall(r"- alert: (\w+)", ALERTS)
        == re.findall(r"^## (\w+)$", runbook, re.MULTILINE)
    )
    assert all(name.lower() == anchor for name, anchor in links)


def test_promtool_accepts_the_configuration_and_the_alerts() -> None:
    run(
        "promtool", "check", "config", "--lint=all", "--lint-fatal", PROMETHEUS / "prometheus.yml", package="prometheus"
    )


def test_promtool_accepts_the_metrics() -> None:
    """Names, units, types and help follow the conventions of Prometheus."""
    run("promtool", "check", "metrics", package="prometheus", stdin=generate_latest(Metrics().registry).decode())


def test_alerts_fire_on_their_condition_only() -> None:
    run("promtool", "test", "rules", Path(__file__).with_name("alerts.test.yml"), package="prometheus")


def expressions() -> list[str]:
    return re.findall(r"^ +expr: (.+?)(?=^ +(?:for|labels): )", ALERTS, re.MULTILINE | re.DOTALL)


def recorded() -> dict[str, str]:
    """Return the recording rules: name and expression."""
    return dict(re.findall(r"record: (\S+)\n +expr: (.+)$", RULES, re.MULTILINE))


def queries() -> list[str]:
    """Return the queries of the panels of the dashboard."""
    dashboard = json.loads((ROOT / "deploy/grafana/aism-fleet.json").read_text(encoding="utf-8"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def metrics(query: str) -> set[str]:
    """Return the metrics in a query: ours, and the two on whether a process runs and since when."""
    return set(re.findall(r"(?<!:)\b(aism_\w+|up|process_start_time_seconds)\b", query))


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
