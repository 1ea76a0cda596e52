"""Backlogs of responses: state changes, and what else agents send."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from aism_engine.store.embedded import EmbeddedServer
from bench.drain import Backlog
from bench.engine_process import EngineProcess
from bench.harness import KEYS, Client, connect, poll, push, wait_empty

TARGETS: Final = ("deep_work", "inbox")
COMMANDS_PER_AGENT: Final = 20
"""Open commands of each agent: fewer than the default of `commands.max_in_flight`."""
MIX_PERIOD: Final = 10
"""Responses after which the mix repeats."""


def agent_id(number: int) -> str:
    return f"architect-{number:06d}"


def message_id(number: int) -> str:
    return f"0190a5e2-7777-7000-8000-{number:012d}"


def response(number: int, kind: str, agent: int, payload: dict[str, Any], **fields: Any) -> bytes:  # noqa: ANN401
    """Encode one response. `number` makes its id unique in the backlog."""
    return msgspec.json.encode(
        {
            "id": message_id(number),
            "type": kind,
            "agent_id": agent_id(agent),
            "payload": payload,
            "timestamp": "2026-11-22T22:00:00Z",
            **fields,
        }
    )


def transition(number: int, agents: int, **fields: Any) -> bytes:  # noqa: ANN401
    """Encode a response that changes the state of the next agent in turn."""
    payload = {"target": TARGETS[number // agents % len(TARGETS)]}
    return response(number, "state_transition", number % agents, payload, **fields)


def registrations(agents: int) -> list[bytes]:
    """Return responses that register agents. A registered agent starts in the state `bootstrap`."""
    payload = {"type": "architect", "labels": {"team": "a"}, "capabilities": ["ack"]}
    return [response(10**9 + number, "register", number, payload) for number in range(agents)]


def state_changes(count: int, agents: int) -> Backlog:
    """Each response changes the state of its agent. The agents are unregistered."""
    preamble = [response(10**9 + number, "state_transition", number, {"target": "idle"}) for number in range(agents)]
    return Backlog([transition(number, agents) for number in range(count)], preamble)


def measurements(count: int, agents: int) -> Backlog:
    """Each response has two measured values."""
    raws = [
        response(number, "measurement", number % agents, {"context_tokens": number, "tokens_per_s": number / 7})
        for number in range(count)
    ]
    return Backlog(raws, registrations(agents))


def refusals(count: int, agents: int) -> Backlog:
    """Each response asks for a state that the machine does not allow."""
    raws = [
        response(number, "state_transition", number % agents, {"target": "logout"}, reply=True)
        for number in range(count)
    ]
    return Backlog(raws, registrations(agents))


def acks_and_results(count: int) -> Backlog:
    """Each agent has taken twenty commands, and sends an ack and a result for each."""
    commands = count // 2
    agents = max(1, commands // COMMANDS_PER_AGENT)
    pairs = (
        (response(2 * n, "ack", n % agents, {}, command_id=f"c{n}"), _result(2 * n + 1, n % agents, f"c{n}"))
        for n in range(commands)
    )
    return Backlog([raw for pair in pairs for raw in pair], (), lambda server: send_commands(server, agents, commands))


def mix(count: int, agents: int) -> Backlog:
    """The responses of the agents of `aism-engine dev`, in its proportions.

    Of ten responses five change a state and ask for a reply, two are measurements, and three are about a command: an
    ack, a progress, and a result or, for every tenth command, an error.
    """
    commands = count // MIX_PERIOD
    raws = list(_mixed(commands * MIX_PERIOD, agents))

    def prepare(server: EmbeddedServer) -> None:
        send_commands(server, agents, commands)

    return Backlog(raws, (), prepare)


def _mixed(count: int, agents: int) -> Iterator[bytes]:
    transitions = [0] * agents
    for number in range(count):
        group, place = divmod(number, MIX_PERIOD)
        agent, commanded, about = number % agents, group % agents, {"command_id": f"c{group}"}
        match place:
            case 1:
                yield response(number, "ack", commanded, {}, **about)
            case 4:
                yield response(number, "progress", commanded, {"percent": 50}, **about)
            case 7 if group % 10 == 0:
                payload = {"code": "simulated_failure", "message": "could not build"}
                yield response(number, "error", commanded, payload, **about)
            case 7:
                yield _result(number, commanded, f"c{group}")
            case 3 | 8:
                values = {"context_used": number % 100 / 100, "tokens": number % 4000}
                yield response(number, "measurement", agent, values)
            case _:
                transitions[agent] += 1
                target = {"target": TARGETS[transitions[agent] % len(TARGETS)]}
                yield response(number, "state_transition", agent, target, reply=True)


def _result(number: int, agent: int, command_id: str) -> bytes:
    return response(number, "result", agent, {"lines": number % 500}, command_id=command_id)


def send_commands(server: EmbeddedServer, agents: int, commands: int) -> None:
    """Register agents, send them commands in turn, and take the commands from their lists.

    The function starts an engine that applies the registrations and the requests, and kills it afterwards.
    """
    client = connect(server.url)
    with EngineProcess(server.url):
        push(client, KEYS.response_queue, registrations(agents))
        wait_empty(client, KEYS.response_queue)
        payloads = ({"agent_id": agent_id(n % agents), "command": {"type": "work"}} for n in range(commands))
        requests = ({"id": f"c{n}", "type": "send", "payload": payload} for n, payload in enumerate(payloads))
        push(client, KEYS.request_queue, requests)
        poll(lambda: listed_commands(client, agents) == commands, 0.05)
    client.delete(*(KEYS.commands(agent_id(number)) for number in range(agents)))
    client.delete(KEYS.lease)  # the next engine need not wait until the lease expires


def listed_commands(client: Client, agents: int) -> int:
    """Return the number of commands in the lists of all agents."""
    pipeline = client.pipeline(transaction=False)
    for number in range(agents):
        pipeline.llen(KEYS.commands(agent_id(number)))
    return sum(pipeline.execute())
