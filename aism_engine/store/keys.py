"""The names of all keys and channels of a fleet: see docs/protocol.md."""

from collections.abc import Callable
from typing import TypeAlias

KeyOf: TypeAlias = Callable[[str], str]


class Keys:
    """Keys under one prefix. The prefix `{aism}` keeps the whole fleet in one slot of a cluster."""

    def __init__(self, prefix: str = "aism") -> None:
        self.prefix = prefix
        # `responses` and `requests` are channels: a publication there wakes up the consumer of the queue.
        self.response_queue = f"{prefix}:engine:response_queue"
        self.responses = f"{prefix}:engine:responses"
        self.request_queue = f"{prefix}:engine:request_queue"
        self.requests = f"{prefix}:engine:requests"
        self.request_reply: KeyOf = lambda request_id: f"{prefix}:engine:replies:{request_id}"
        # The reply to a decided request, kept for a repetition of that request. `request_reply` is the list that the
        # sender pops.
        self.saved_reply: KeyOf = lambda request_id: f"{prefix}:engine:request:{request_id}"

        self.state_changes = f"{prefix}:events:state_changes"
        self.errors = f"{prefix}:events:errors"
        self.measurements = f"{prefix}:events:measurements"

        self.heartbeats = f"{prefix}:agents:heartbeats"
        self.index = f"{prefix}:agents:index"
        self.silent = f"{prefix}:engine:silent"
        self.agent_reply: Callable[[str, str], str] = lambda agent_id, message_id: (
            f"{prefix}:agent:{agent_id}:replies:{message_id}"
        )
        self.commands: KeyOf = lambda agent_id: f"{prefix}:agent:{agent_id}:commands"
        self.state: KeyOf = lambda agent_id: f"{prefix}:agent:{agent_id}:state"
        self.metadata: KeyOf = lambda agent_id: f"{prefix}:agent:{agent_id}:metadata"
        self.inbox: KeyOf = lambda agent_id: f"{prefix}:agent:{agent_id}:inbox"
        self.agent_measurements: KeyOf = lambda agent_id: f"{prefix}:agent:{agent_id}:measurements"
        self.agent: KeyOf = lambda agent_id: f"{prefix}:engine:agent:{agent_id}"
        # Messages that wait until the agent accepts messages. Then the engine moves them to the inbox.
        self.mail: KeyOf = lambda agent_id: f"{prefix}:engine:mail:{agent_id}"

        self.command: KeyOf = lambda command_id: f"{prefix}:engine:command:{command_id}"
        self.group: KeyOf = lambda group_id: f"{prefix}:engine:group:{group_id}"
        self.deadlines = f"{prefix}:engine:deadlines"
        self.fanout = f"{prefix}:engine:fanout"
        self.holds = f"{prefix}:engine:holds"

        self.audit = f"{prefix}:engine:audit"
        self.archives = f"{prefix}:engine:archives"
        self.dead_letters = f"{prefix}:engine:dead_letters"
        self.oversized = f"{prefix}:engine:oversized"

        self.lease = f"{prefix}:engine:lease"
        self.epoch = f"{prefix}:engine:epoch"
        # When an engine last took or renewed the lease.
        self.led_at = f"{prefix}:engine:led_at"
        self.ledger = f"{prefix}:engine:ledger"
        self.publication_cursor = f"{prefix}:engine:publication_cursor"
