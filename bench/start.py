"""Measures how long a call of `aism` takes, next to a Python interpreter that does nothing.

The calls alternate, so that other load on the machine affects all of them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from aism_engine.store.embedded import EmbeddedServer


def main(runs: int) -> None:
    aism = str(Path(sys.executable).with_name("aism"))
    commands = {
        "nothing": [sys.executable, "-c", "pass"],
        "whoami": [aism, "whoami"],
        "heartbeat": [aism, "heartbeat"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with EmbeddedServer() as server:
        environ = {**os.environ, "AISM_AGENT_ID": "bench-1", "AISM_REDIS_URL": server.url}
        for _ in range(runs):
            for name, command in commands.items():
                started_at = time.perf_counter()
                subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, check=True)
                seconds[name].append(time.perf_counter() - started_at)
    ms = {name: 1000 * statistics.median(each) for name, each in seconds.items()}
    figures = {f"{name}_ms": round(median, 1) for name, median in ms.items()}
    own = {f"{name}_own_ms": round(ms[name] - ms["nothing"], 1) for name in ("whoami", "heartbeat")}
    print(json.dumps({"runs": runs, **figures, **own, "ratio": round(ms["nothing"] / ms["whoami"], 2)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=31, help="calls of each; the medians are printed")
    main(parser.parse_args().runs)
