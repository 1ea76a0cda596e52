"""How long the agent's tool takes to be of use: from its start to its end, beside an interpreter that does nothing.

Everything is real: a server of its own, processes that are started and waited for. Both are run in turn, so that
whatever else the machine does meets both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from aism_engine.store.embedded import EmbeddedServer


def seconds(command: Sequence[str], environ: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main(runs: int) -> None:
    tool = str(Path(sys.executable).with_name("aism"))
    with EmbeddedServer() as server:
        environ = {**os.environ, "AISM_AGENT_ID": "bench-1", "AISM_REDIS_URL": server.url}
        commands = {
            "nothing": [sys.executable, "-c", "pass"],
            "whoami": [tool, "whoami"],
            "heartbeat": [tool, "heartbeat"],
        }
        took: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(runs):
            for name, command in commands.items():
                took[name].append(seconds(command, environ))
    medians = {name: statistics.median(each) for name, each in took.items()}
    figures = {f"{name}_ms": round(1000 * median, 1) for name, median in medians.items()}
    own = {f"{name}_own_ms": round(1000 * (medians[name] - medians["nothing"]), 1) for name in ("whoami", "heartbeat")}
    print(json.dumps({"runs": runs, **figures, **own, "ratio": round(medians["nothing"] / medians["whoami"], 2)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=31, help="of each; the medians are printed")
    main(parser.parse_args().runs)
