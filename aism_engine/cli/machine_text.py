"""A machine in words, and as a diagram."""

from collections.abc import Iterator
from typing import Final

from aism_engine.domain.machines.machine import PARTIES, Machine

_INDENT: Final = "    "


def terms(machine: Machine, name: str) -> Iterator[str]:
    """Say in short what a state asks for, beside its transitions."""
    state = machine.state(name)
    if state.final:
        yield "final"
    if state.waits_for:
        yield f"waits for {state.waits_for}"
    if state.accepts_messages is not True:
        yield "messages later" if state.accepts_messages == "later" else "no messages"
    if state.min_stay:
        yield f"at least {state.min_stay:g} s"
    if state.max_stay:
        after = f", then {state.after_max_stay}" if state.after_max_stay else ""
        yield f"at most {state.max_stay:g} s{after}"
    if state.cooldown:
        yield f"not again for {state.cooldown:g} s"
    if state.max_agents:
        yield f"room for {state.max_agents}"
    for target in state.transitions:
        yield f"to {target}: {arrow_terms(machine, name, target)}"


def arrow_terms(machine: Machine, name: str, target: str) -> str:
    """Say what one transition asks for; nothing where it is anybody's."""
    transition = machine.state(name).transitions.get(target)
    if transition is None:
        return ""
    by = f"by {' or '.join(transition.by)}" if set(transition.by) != set(PARTIES) else ""
    needs = f"needs {', '.join(transition.requires)}" if transition.requires else ""
    return ", ".join(filter(None, (by, needs)))


def drawn(machine: Machine) -> str:
    """Draw a machine in Mermaid: a `stateDiagram-v2`. Names get ids of their own, for not every name can be one."""
    ids = {name: f"s{number}" for number, name in enumerate(machine.states)}
    lines = ["stateDiagram-v2", *(f'{_INDENT}state "{name}" as {ids[name]}' for name in machine.states)]
    if machine.open:
        lines += [f'{_INDENT}state "any state" as s0', f"{_INDENT}[*] --> s0", f"{_INDENT}s0 --> s0"]
        return "\n".join(lines)
    lines.append(f"{_INDENT}[*] --> {ids[machine.initial]}")
    for name, state in machine.states.items():
        for target in machine.allowed(name):
            labels = [arrow_terms(machine, name, target)]
            if target == state.after_max_stay:
                labels.append(f"max_stay {state.max_stay:g} s")
            label = ", ".join(filter(None, labels))
            lines.append(f"{_INDENT}{ids[name]} --> {ids[target]}{f': {label}' if label else ''}")
        if state.final:
            lines.append(f"{_INDENT}{ids[name]} --> [*]")
    return "\n".join(lines)
