"""What we ship for running the engine agrees with the engine.

The files are read as text: there is no parser of YAML among the requirements, and none is needed to find a name.
Checks by a tool of the field are skipped, with the package to install, where the tool is absent.
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


def run(*command: str | Path, needs: str = "", given: str = "") -> str:
    """Run a tool and return all that it says; it must succeed. Without it, skip and name the Debian package.

    `given` is what it reads.
    """
    if needs and shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed: apt-get install {needs}")
    ended = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, check=False)
    output = ended.stdout + ended.stderr
    assert ended.returncode == 0, output
    return output


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    assert match is not None, f"{pattern} is not there"
    return match[1]


# --- the wheel and the image ------------------------------------------------------------------------------------------


def test_the_wheel_holds_the_machines_and_the_scripts(tmp_path: Path) -> None:
    """The engine works when it is installed, not only from the checkout: what it reads lies in the package."""
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir")
    run(*pip, tmp_path, ROOT)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for path in (*(ROOT / "config/machines").glob("*.toml"), *(ROOT / "aism_engine/store/lua").rglob("*.lua")):
        assert sum(name.endswith(f"/{path.name}") for name in names) == 1, path.name


def test_the_base_image_has_a_python_that_the_project_supports() -> None:
    """The default of PYTHON_IMAGE satisfies requires-python, and compose has the same default."""
    image = found(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE)
    least = found(r"^>=([\d.]+)$", PYPROJECT["project"]["requires-python"])
    assert numbers(found(r"^python:([\d.]+)", image)) >= numbers(least)
    assert found(r"\$\{AISM_PYTHON_IMAGE:-(.+)\}", COMPOSE) == image


def test_the_builder_knows_all_of_the_build_backend() -> None:
    """Each package that builds our wheel is in the developers' lock, so that the image's build is locked as well."""
    names = found(r"/\^\(([a-z|-]+)\)==/", DOCKERFILE).split("|")
    locked = re.findall(r"^([a-z-]+)==", (ROOT / "requirements/dev.lock").read_text(encoding="utf-8"), re.MULTILINE)
    assert PYPROJECT["build-system"]["build-backend"].startswith(f"{names[0]}.")
    assert set(names) <= set(locked)


def test_everything_listens_and_looks_at_one_port() -> None:
    """The default of http.port is what the image exposes, compose publishes and Prometheus scrapes."""
    port = str(SETTINGS.http.port)
    assert found(r"^EXPOSE (\d+)$", DOCKERFILE) == port
    assert found(r"AISM_HTTP_PORT:-(\d+)\}:\1", COMPOSE) == port
    assert found(r"localhost:(\d+)", (PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8")) == port


def test_health_is_asked_of_the_engine_that_runs() -> None:
    """The checks of the image and of compose are commands that exist, with the configuration of that engine."""
    running = json.loads(found(r"^CMD (\[.+\])$", DOCKERFILE))
    for pattern, text in (
        (r"HEALTHCHECK .*\\\n +CMD (\[.+\])$", DOCKERFILE),
        (r'test: (\["CMD", "aism.+\])$', COMPOSE),
    ):
        program, command, *options = [word for word in json.loads(found(pattern, text)) if word != "CMD"]
        known = run(Path(sys.executable).with_name(program), command, "--help")
        assert {option for option in options if option.startswith("--")} <= set(re.findall(r"--[a-z-]+", known))
        assert options[-2:] == running[-2:] == ["--config", "/etc/aism/engine.toml"]


def test_whoever_stops_the_engine_waits_longer_than_it_takes() -> None:
    """No service manager kills an engine that still finishes what is in hand."""
    longest = SETTINGS.supervisor.shutdown_timeout
    assert int(found(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(encoding="utf-8"))) > longest
    assert int(found(r"stop_grace_period: (\d+)s$", COMPOSE)) > longest


def test_an_archive_has_one_place() -> None:
    """What systemd makes for the engine is in the image, too, and is its user's: a volume there can be written."""
    directory = found(r"^StateDirectory=(.+)$", UNIT.read_text(encoding="utf-8"))
    user = found(r"useradd .* (\w+) \\$", DOCKERFILE)
    assert found(rf"install -d -o {user} -g {user} -m 700 (\S+)$", DOCKERFILE) == f"/var/lib/{directory}"


@pytest.mark.parametrize("text", [DOCKERFILE, UNIT.read_text(encoding="utf-8")], ids=["image", "unit"])
def test_nobody_waits_for_dns_longer_than_for_a_connection(text: str) -> None:
    """A lookup that nobody answers ends within redis.connect_timeout: its thread is free for the next attempt."""
    seconds, attempts = (int(found(rf"RES_OPTIONS=.*\b{option}:(\d+)", text)) for option in ("timeout", "attempts"))
    assert seconds * attempts <= SETTINGS.redis.connect_timeout


@pytest.mark.parametrize("profile", [(), ("--profile", "demo")])
def test_compose_reads_its_file(profile: tuple[str, ...]) -> None:
    """The compose file is one, with the demo and without."""
    run("docker-compose", *profile, "config", "--quiet", needs="docker-compose")


# --- systemd ----------------------------------------------------------------------------------------------------------


def test_the_unit_starts_the_engine_with_options_that_exist() -> None:
    """ExecStart is a command line of `aism-engine`, and so is the image's."""
    command, *options = found(r"^ExecStart=(.+)$", UNIT.read_text(encoding="utf-8")).split()
    assert command == EXECUTABLE
    assert found(r"^CMD (\[.+\])$", DOCKERFILE) == str(options).replace("'", '"')
    known = run(Path(sys.executable).with_name("aism-engine"), options[0], "--help")
    assert {option for option in options if option.startswith("--")} <= set(re.findall(r"--[a-z-]+", known))


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` is silent; an executable that is not installed here is not the unit's fault."""
    assert run("systemd-analyze", "verify", installed(tmp_path), needs="systemd") == ""


def test_the_unit_is_locked_in(tmp_path: Path) -> None:
    """The exposure that systemd computes is at most 1.5 of 10."""
    output = run("systemd-analyze", "security", "--offline=true", "--no-pager", installed(tmp_path), needs="systemd")
    assert float(found(r"Overall exposure level for aism-engine.service: ([\d.]+)", output)) <= 1.5


def installed(folder: Path) -> Path:
    unit = folder / UNIT.name
    unit.write_text(UNIT.read_text(encoding="utf-8").replace(EXECUTABLE, sys.executable), encoding="utf-8")
    return unit


# --- Prometheus -------------------------------------------------------------------------------------------------------


def test_alerts_ask_for_metrics_and_labels_that_exist() -> None:
    """A metric that was renamed takes its alert, its panel and its recording rule along: none asks for nothing."""
    known = {**Metrics().registry._names_to_collectors}
    for asking in (*expressions(), *recorded().values(), *queries()):
        asked = re.findall(r"(?<!:)\b(aism_\w+)(?:\{([^}]*)\})?", asking)
        for name, labels in asked:
            collector = known.get(name)
            assert isinstance(collector, MetricWrapperBase), name
            assert set(re.findall(r"(\w+)!?=", labels)) <= {*collector._labelnames, "fleet"}, (name, labels)


def test_every_alert_has_its_panel() -> None:
    """What an alert looks at can be seen: whoever is woken sees since when, and how bad it is."""
    shown = "\n".join(queries())
    for name, expression in recorded().items():
        shown = shown.replace(name, expression)
    for expression in expressions():
        assert metrics(expression)
        assert metrics(expression) <= metrics(shown)


def test_every_recording_rule_and_alert_is_tried() -> None:
    """Each has its made-up series, on which promtool sees it fire, or computes it."""
    names = re.findall(r"- alert: (\S+)", ALERTS) + list(recorded())
    tried = Path(__file__).with_name("alerts.test.yml").read_text(encoding="utf-8")
    assert [name for name in names if not re.search(rf"{name}\b", tried)] == []


async def test_alerts_look_at_depths_that_are_measured(redis_client: Redis, prefix: str) -> None:
    """Each `where` that an alert names is one of those that the sampler reads."""
    measured = await Store(redis_client, Keys(prefix), SystemClock()).depths()
    assert set(re.findall(r'where="(\w+)"', "\n".join(expressions()))) <= set(measured)


def test_every_alert_says_how_bad_what_and_why() -> None:
    """Each alert has a severity, a summary, and a description that ends with what to do first."""
    for alert in re.split(r"^ +- alert: ", ALERTS, flags=re.MULTILINE)[1:]:
        assert found(r"severity: (\w+)", alert) in {"critical", "warning"}
        assert found(r'summary: "(.+)"$', alert)
        assert found(r'description: ".+ First: (.+)\."$', alert)


def test_every_alert_has_its_section_in_the_runbook() -> None:
    """Whoever is woken finds the page by the link of the alert; no section is for an alert that is none."""
    runbook = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    links = re.findall(r'- alert: (\w+)\n(?:.*\n)*?          runbook: "docs/runbook.md#(\w+)"', ALERTS)
    assert (
        [name for name, _ in links]
        == re.findall(r"- alert: (\w+)", ALERTS)
        == re.findall(r"^## (\w+)$", runbook, re.MULTILINE)
    )
    assert all(name.lower() == anchor for name, anchor in links)


def test_promtool_finds_nothing_wrong() -> None:
    """`promtool check` accepts the configuration and the alerts."""
    run("promtool", "check", "config", "--lint=all", "--lint-fatal", PROMETHEUS / "prometheus.yml", needs="prometheus")


def test_promtool_finds_nothing_wrong_with_the_metrics() -> None:
    """Names, units, types and help of what is exported are as Prometheus itself wants them."""
    run("promtool", "check", "metrics", needs="prometheus", given=generate_latest(Metrics().registry).decode())


def test_alerts_fire_when_they_should() -> None:
    """On made-up series, each alert fires for what it is meant for, and for nothing else."""
    run("promtool", "test", "rules", Path(__file__).with_name("alerts.test.yml"), needs="prometheus")


def expressions() -> list[str]:
    return re.findall(r"^ +expr: (.+?)(?=^ +(?:for|labels): )", ALERTS, re.MULTILINE | re.DOTALL)


def recorded() -> dict[str, str]:
    """Read what is computed once, and from what."""
    return dict(re.findall(r"record: (\S+)\n +expr: (.+)$", RULES, re.MULTILINE))


def queries() -> list[str]:
    """Read what the panels of the dashboard ask for."""
    dashboard = json.loads((ROOT / "deploy/grafana/aism-fleet.json").read_text(encoding="utf-8"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def metrics(query: str) -> set[str]:
    """Find the metrics that are asked for: ours, and the two that tell whether a process is there, and since when."""
    return set(re.findall(r"(?<!:)\b(aism_\w+|up|process_start_time_seconds)\b", query))


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
