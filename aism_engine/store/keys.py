"""The names of all keys and channels of a fleet: see docs/protocol.md."""


class Keys:
    """Keys under one prefix. The prefix `{aism}` keeps the whole fleet in one slot of a cluster."""

    def __init__(self, prefix: str = "aism") -> None:
        self.prefix = prefix
        self.response_queue = f"{prefix}:engine:response_queue"
        self.responses = f"{prefix}:engine:responses"
        self.request_queue = f"{prefix}:engine:request_queue"
        self.requests = f"{prefix}:engine:requests"
        self.state_changes = f"{prefix}:events:state_changes"
        self.errors = f"{prefix}:events:errors"
        self.measurements = f"{prefix}:events:measurements"
        self.heartbeats = f"{prefix}:agents:heartbeats"
        self.silent = f"{prefix}:engine:silent"
        self.index = f"{prefix}:agents:index"
        self.deadlines = f"{prefix}:engine:deadlines"
        self.audit = f"{prefix}:engine:audit"
        self.archives = f"{prefix}:engine:archives"
        self.dead_letters = f"{prefix}:engine:dead_letters"
        self.oversized = f"{prefix}:engine:oversized"
        self.lease = f"{prefix}:engine:lease"
        self.epoch = f"{prefix}:engine:epoch"
        self.ledger = f"{prefix}:engine:ledger"
        self.publication_cursor = f"{prefix}:engine:publication_cursor"
        self._agent = f"{prefix}:agent:"
        self._record = f"{prefix}:engine:agent:"
        self.holds = f"{prefix}:engine:holds"
        self.fanout = f"{prefix}:engine:fanout"
        self._command = f"{prefix}:engine:command:"

    def commands(self, agent_id: str) -> str:
        return f"{self._agent}{agent_id}:commands"

    def state(self, agent_id: str) -> str:
        return f"{self._agent}{agent_id}:state"

    def metadata(self, agent_id: str) -> str:
        return f"{self._agent}{agent_id}:metadata"

    def inbox(self, agent_id: str) -> str:
        return f"{self._agent}{agent_id}:inbox"

    def agent_measurements(self, agent_id: str) -> str:
        return f"{self._agent}{agent_id}:measurements"

    def agent_reply(self, agent_id: str, message_id: str) -> str:
        return f"{self._agent}{agent_id}:replies:{message_id}"

    def request_reply(self, request_id: str) -> str:
        return f"{self.prefix}:engine:replies:{request_id}"

    def agent(self, agent_id: str) -> str:
        return self._record + agent_id

    def mail(self, agent_id: str) -> str:
        return f"{self.prefix}:engine:mail:{agent_id}"

    def command(self, command_id: str) -> str:
        return self._command + command_id

    def group(self, group_id: str) -> str:
        return f"{self.prefix}:engine:group:{group_id}"

    def saved_reply(self, request_id: str) -> str:
        return f"{self.prefix}:engine:request:{request_id}"
