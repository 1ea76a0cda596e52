"""Programs that run beside a benchmark: the peers that are written in Python, and agents that send heartbeats.

A peer is a program that does similar work, and is compared with the engine. Each public function is a program that runs
in a process of its own until it is killed: see `harness.run_in_process`.

The peers do less than the engine. They set the state of an agent, and neither validate it nor record it. They have no
audit, and only `consume` publishes an event. A crash loses the message that `one_by_one` and `consume` have popped.
"""

import time
from typing import Any, Final

import msgspec

from bench.harness import KEYS, connect

BATCH: Final = 512
"""Responses in one transaction, as in the default of `response_consumer.batch_messages`."""
HEARTBEAT_INTERVAL_S: Final = 10
PAGES_PER_SECOND: Final = 20

BARE_RESPONSES: Final = "bare:responses"
BARE_REQUESTS: Final = "bare:requests"
BARE_EVENTS: Final = "bare:events"


def one_by_one(url: str) -> None:
    """Pop one response at a time, and set the state of its agent."""
    client = connect(url, timeout_s=None)
    decode = msgspec.json.Decoder().decode
    while True:
        _, raw = client.brpop([KEYS.response_queue])
        client.set(*_state_of(decode(raw)))


def batches(url: str) -> None:
    """Apply batches: read the tail of the queue, and set the states and trim the queue in one transaction.

    The transaction also reads the next batch, so that each batch costs one round trip. No message is lost or applied
    partly: a message leaves the queue in the transaction that applies it. A reply is pushed where one is asked for.
    """
    client = connect(url, timeout_s=None)
    decode = msgspec.json.Decoder().decode
    raws = client.lrange(KEYS.response_queue, -BATCH, -1)
    while True:
        if not raws:
            time.sleep(0.001)
        transaction = client.pipeline(transaction=True)
        for raw in reversed(raws):
            message = decode(raw)
            transaction.set(*_state_of(message))
            if message.get("reply"):
                transaction.lpush(KEYS.agent_reply(message["agent_id"], message["id"]), b'{"ok":true}')
        if raws:
            transaction.ltrim(KEYS.response_queue, 0, -len(raws) - 1)
        transaction.lrange(KEYS.response_queue, -BATCH, -1)
        raws = transaction.execute()[-1]


def consume(url: str) -> None:
    """Handle one message at a time, as soon as it is there.

    For a response: set the state, and publish an event. For a request: store a record, and push the command.
    """
    client = connect(url, timeout_s=None)
    decode = msgspec.json.Decoder().decode
    while True:
        queue, raw = client.brpop([BARE_RESPONSES, BARE_REQUESTS])
        message, pipeline = decode(raw), client.pipeline(transaction=False)
        if queue == BARE_RESPONSES.encode():
            pipeline.set(*_state_of(message))
            pipeline.publish(BARE_EVENTS, raw)
        else:
            pipeline.set(f"bare:command:{message['id']}", raw)
            pipeline.lpush(KEYS.commands(message["payload"]["agent_id"]), raw)
        pipeline.execute()


def _state_of(message: Any) -> tuple[str, str]:  # noqa: ANN401  a decoded message
    """Return the key of the agent's state and the state. For messages of other types: their type."""
    return KEYS.state(message["agent_id"]), message["payload"].get("target") or message["type"]


def send_heartbeats(url: str, agents: int) -> None:
    """Send a heartbeat of each agent every ten seconds, spread evenly over this time."""
    client, number = connect(url), 0
    page = max(1, agents // HEARTBEAT_INTERVAL_S // PAGES_PER_SECOND)
    interval_s = page * HEARTBEAT_INTERVAL_S / agents
    next_at = time.monotonic()
    while True:
        now = time.time()
        client.zadd(KEYS.heartbeats, {f"agent-{(number + each) % agents:06d}": now for each in range(page)})
        number += page
        next_at += interval_s
        time.sleep(max(0.0, next_at - time.monotonic()))
