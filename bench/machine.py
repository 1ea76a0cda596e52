"""The header of the table: the machine, and the versions of everything that was measured."""

import os
import platform
import sysconfig
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final

import aism_engine
from bench.harness import Client, connect, make_server

LIBRARIES: Final = {"redis-py": "redis", "hiredis": "hiredis", "msgspec": "msgspec", "uvloop": "uvloop"}


def describe() -> Mapping[str, str]:
    """Return what the figures depend on. Starts a server to ask for its version."""
    with make_server() as server:
        server_version = describe_server(connect(server.url))
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %z"),
        "CPU": f"{cpu_model()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
        "Python": f"{platform.python_version()}, {describe_build()}",
        "engine": aism_engine.__version__,
        **{name: version(package) for name, package in LIBRARIES.items()},
        "server": server_version,
    }


def describe_server(client: Client) -> str:
    info = client.info("server")
    name = info.get("server_name", "redis")
    return f"{name} {info.get('valkey_version') or info['redis_version']}"


def cpu_model() -> str:
    """Return the name of the CPU, if the kernel tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def describe_build() -> str:
    """Return whether the interpreter was built with profile-guided and link-time optimisation."""
    flags = str(sysconfig.get_config_var("CONFIG_ARGS"))
    pgo, lto = "--enable-optimizations" in flags, "--with-lto" in flags
    return f"built {'with' if pgo else 'without'} PGO and {'with' if lto else 'without'} LTO"
