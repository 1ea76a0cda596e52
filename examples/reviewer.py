"""An agent with handlers: what a handler returns is the result, what it raises is the error.

python examples/reviewer.py reviewer-1
aism-engine send reviewer-1 review --payload '{"branch": "main"}' --wait
"""

import asyncio
import os
import sys

from aism_engine import Agent, CommandFailedError, Task

AGENT_ID = sys.argv[1] if len(sys.argv) > 1 else f"reviewer-{os.getpid()}"
agent = Agent(AGENT_ID, type="reviewer", concurrency=2)


@agent.on("review")
async def review(task: Task) -> dict[str, object]:
    """Review a branch, with a report of progress half way."""
    branch = task.payload.get("branch")
    if not isinstance(branch, str):
        raise CommandFailedError("no_branch", "the payload needs a branch")
    await task.progress(percent=50, note=f"reading {branch}")
    await asyncio.sleep(0.1)
    return {"branch": branch, "verdict": "good"}


if __name__ == "__main__":
    agent.main()
