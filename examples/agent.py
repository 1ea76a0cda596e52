"""A minimal agent on plain redis-py: it registers, beats, takes commands and answers them. Nothing of ours is imported.

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


def say(kind: str, payload: dict[str, object], command_id: str | None = None) -> None:
    """Tell the engine something. The id makes it safe to push the same message again after a broken connection."""
    message = {"id": str(uuid.uuid4()), "type": kind, "agent_id": AGENT_ID, "payload": payload}
    if command_id is not None:
        message["command_id"] = command_id
    body = json.dumps(message)
    redis.lpush("aism:engine:response_queue", body)
    redis.publish("aism:engine:responses", body)


def main() -> None:
    """Work until Ctrl-C."""
    say("register", {"type": "scribe", "labels": {"example": "yes"}, "capabilities": ["ack"]})
    say("state_transition", {"target": "inbox"})
    print(f"{AGENT_ID} waits for commands", file=sys.stderr)
    while True:
        redis.zadd("aism:agents:heartbeats", {AGENT_ID: time.time()})
        popped = redis.brpop([f"aism:agent:{AGENT_ID}:commands"], timeout=3)
        if not popped:
            continue
        command = json.loads(popped[1])
        print(command, flush=True)
        say("ack", {}, command["id"])
        if command["type"] == "count":
            say("result", {"words": len(str(command["payload"].get("text", "")).split())}, command["id"])
        elif command["type"] == "state_transition":
            say("state_transition", {"target": command["payload"]["target"]}, command["id"])
        else:
            say("error", {"code": "unknown_type", "message": f"I cannot {command['type']}"}, command["id"])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say("goodbye", {"reason": "Ctrl-C"})
