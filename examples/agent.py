"""A minimal agent on plain redis-py, without the aism_engine package: registers, sends heartbeats, executes commands.

python examples/agent.py scribe-1
aism-engine send scribe-1 count --id c1 --payload '{"text": "one two three"}' --wait
aism-engine commands cancel c1
"""

import json
import os
import sys
import time
import uuid
from typing import Any

from redis import Redis

AGENT_ID = sys.argv[1] if len(sys.argv) > 1 else f"scribe-{os.getpid()}"
COMMANDS = f"aism:agent:{AGENT_ID}:commands"
INSTANCE = uuid.uuid4().hex
"""Identifies this process. If it is new, the engine delivers again the commands that the previous process had taken."""
redis = Redis.from_url(os.environ.get("AISM_REDIS_URL") or "redis://127.0.0.1:6379/0", decode_responses=True)


class CancelledError(Exception):
    """The engine has ended the command that this agent executes, for example because of a cancellation or a timeout."""


def send(kind: str, payload: dict[str, object], command_id: str | None = None) -> None:
    """Send a message to the engine. Its id makes it safe to push it again after a broken connection."""
    message = {"id": str(uuid.uuid4()), "type": kind, "agent_id": AGENT_ID, "instance": INSTANCE, "payload": payload}
    if command_id is not None:
        message["command_id"] = command_id
    redis.lpush("aism:engine:response_queue", json.dumps(message))
    redis.publish("aism:engine:responses", AGENT_ID)  # wakes the engine up, which ignores the content


def heartbeat() -> None:
    """Show that the agent is alive."""
    redis.zadd("aism:agents:heartbeats", {AGENT_ID: time.time()})


def check_cancelled(command_id: str) -> None:
    """Raise CancelledError if the command is cancelled. Call this between two steps of the work.

    The engine puts a `cancel` before all other commands of the list, so this pops no other command.
    """
    heartbeat()
    while (body := redis.lindex(COMMANDS, -1)) and json.loads(body)["type"] == "cancel":
        if json.loads(redis.rpop(COMMANDS))["payload"]["command_id"] == command_id:
            raise CancelledError


def count_words(command: dict[str, Any]) -> dict[str, object]:
    """Count the words of a text, one by one."""
    words = 0
    for _ in str(command["payload"].get("text", "")).split():
        words += 1
        time.sleep(command["payload"].get("pause", 0))
        check_cancelled(command["id"])
    return {"words": words}


def execute(command: dict[str, Any]) -> None:
    """Execute a command, and send its outcome. A cancelled command has none."""
    if command["type"] == "count":
        try:
            send("result", count_words(command), command["id"])
        except CancelledError:
            print(f"{command['id']} was cancelled", file=sys.stderr)
    elif command["type"] == "state_transition":
        send("state_transition", {"target": command["payload"]["target"]}, command["id"])
    else:
        send("error", {"code": "unknown_type", "message": f"no handler for {command['type']}"}, command["id"])


def main() -> None:
    """Execute commands until Ctrl-C."""
    send("register", {"type": "scribe", "labels": {"example": "yes"}, "capabilities": ["ack"]})
    send("state_transition", {"target": "inbox"})
    print(f"{AGENT_ID} waits for commands", file=sys.stderr)
    while True:
        heartbeat()
        # redis-py's socket timeout is 5 seconds: a longer blocking pop would raise an error.
        popped = redis.brpop([COMMANDS], timeout=3)
        if not popped:
            continue
        command = json.loads(popped[1])
        print(command, flush=True)
        if command["type"] != "cancel":  # a `cancel` for a command that has ended here: it needs no answer
            send("ack", {}, command["id"])
            execute(command)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        send("goodbye", {"reason": "Ctrl-C"})
