"""`python -m tests.costs`: count what the batches cost now, print what has changed, and update the table."""

import asyncio

from structlog.testing import capture_logs

from tests.costs import table
from tests.costs.measure import measure
from tests.costs.workloads import WORKLOADS
from tests.support.server import OwnServer


async def main() -> None:
    expected, actual = table.read(), {}
    with OwnServer(append_only=False) as server, capture_logs():
        for name in WORKLOADS:
            actual[name] = await measure(server, name)
            for change in table.changes(expected.get(name, {}), actual[name]):
                print(f"{name}: {change}")
    table.write(actual)


if __name__ == "__main__":
    asyncio.run(main())
