"""A minimal agent on plain redis-py, without the aism_engine package: registers, sends heartbeats, executes commands.

python examples/agent.py scribe-1
aism-engine send scribe-1 count --payload '{"text": "one two three"}' --wait
"""

import json
import os
import sys
import time
import uuid

from redis import Redis

AGENT_ID = sys.argv[1] if len(sys.argv) > 1 else f"scribe-{os.getpid()}"
redis = Redis.from_url(os.environ.get("AISM_REDIS_URL", "redis://127.0.0.1:6379/0"), decode_responses=True)


def send(kind: str, payload: dict[str, object], command_id: str | None = None) -> None:
    """Send a message to the engine. Its id makes it safe to push it again after a broken connection."""
    message = {"id": str(uuid.uuid4()), "type": kind, "agent_id": AGENT_ID, "payload": payload}
    if command_id is not None:
        message["command_id"] = command_id
    body = json.dumps(message)
    redis.lpush("aism:engine:response_queue", body)
    redis.publish("aism:engine:responses", body)


def main() -> None:
    """Execute commands until Ctrl-C."""
    send("register", {"type": "scribe", "labels": {"example": "yes"}, "capabilities": ["ack"]})
    send("state_transition", {"target": "inbox"})
    print(f"{AGENT_ID} waits for commands", file=sys.stderr)
    while True:
        redis.zadd("aism:agents:heartbeats", {AGENT_ID: time.time()})
        # redis-py's socket timeout is 5 seconds: a longer blocking pop would raise an error.
        popped = redis.brpop([f"aism:agent:{AGENT_ID}:commands"], timeout=3)
        if not popped:
            continue
        command = json.loads(popped[1])
        print(command, flush=True)
        send("ack", {}, command["id"])
        if command["type"] == "count":
            send("result", {"words": len(str(command["payload"].get("text", "")).split())}, command["id"])
        elif command["type"] == "state_transition":
            send("state_transition", {"target": command["payload"]["target"]}, command["id"])
        else:
            send("error", {"code": "unknown_type", "message": f"no handler for {command['type']}"}, command["id"])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        send("goodbye", {"reason": "Ctrl-C"})
