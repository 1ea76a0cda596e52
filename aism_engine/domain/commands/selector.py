"""Selectors: which agents a request addresses, in the grammar of Kubernetes label selectors.

    type=architect, state in (inbox, idle), label.team!=a, label.gpu, !label.retired

Requirements are joined by commas, and all of them must hold. `!=` and `notin` also hold for agents without the label.
See "Labels and Selectors" in the documentation of Kubernetes.
"""

import re
from collections.abc import Callable
from typing import Final, NoReturn

from msgspec import Struct

from aism_engine.domain.agents.agent import ABSENT, AgentRecord

_TOKEN: Final = re.compile(r"\s*(?:(?P<word>[A-Za-z0-9][A-Za-z0-9._/:-]*)|(?P<symbol>==|!=|[=!(),])|(?P<other>\S))")
_EXAMPLE: Final = "for example type=architect,state in (inbox,idle),label.team!=a"
_FIELDS: Final[dict[str, Callable[[AgentRecord], str]]] = {
    "type": lambda agent: agent.type,
    "state": lambda agent: agent.state,
    "liveness": lambda agent: agent.liveness.value,
    "id": lambda agent: agent.agent_id,
}
_IS_NEGATED: Final = {"=": False, "==": False, "in": False, "!=": True, "notin": True}
"""The operators, and whether each excludes the values after it."""
_LABEL: Final = "label."
_MAX_REQUIREMENTS: Final = 32
"""Maximum number of requirements of a selector, and of values of a requirement: arbitrary numbers."""
_MAX_VALUES: Final = 256


class Requirement(Struct, frozen=True):
    """A condition: the agent's value of `key` is in `values`, or is not in `values` if `negated`.

    A label that the agent lacks has the value None. With the default of `values`, the condition is that the agent lacks
    the label; if `negated`, that it has the label.
    """

    key: str
    negated: bool
    values: frozenset[str | None] = frozenset({None})

    def holds(self, agent: AgentRecord) -> bool:
        read_field = _FIELDS.get(self.key)
        value = agent.labels.get(self.key[len(_LABEL) :]) if read_field is None else read_field(agent)
        return (value in self.values) != self.negated


class Selector(Struct, frozen=True):
    """A parsed selector: requirements that must all hold."""

    requirements: tuple[Requirement, ...]

    @classmethod
    def parse(cls, text: str) -> "Selector":
        """Parse a selector. Raises ValueError with the position and what was expected."""
        tokens = _Tokens(text)
        found = [_requirement(tokens)]
        while tokens.take(","):
            found.append(_requirement(tokens))
        if tokens.word or tokens.symbol:
            tokens.fail("a comma or the end")
        if len(found) > _MAX_REQUIREMENTS:
            raise ValueError(f"a selector has at most {_MAX_REQUIREMENTS} requirements; this one has {len(found)}")
        return cls(tuple(found))

    def matches(self, agent: AgentRecord) -> bool:
        return all(requirement.holds(agent) for requirement in self.requirements)

    def selects(self, agent: AgentRecord) -> bool:
        """Return whether the selector addresses an agent: a lost or left one only if the selector names `liveness`."""
        return self.matches(agent) and (self.names_liveness or agent.liveness not in ABSENT)

    @property
    def names_liveness(self) -> bool:
        return any(requirement.key == "liveness" for requirement in self.requirements)


class _Tokens:
    """The words and symbols of a text, one at a time.

    A word is in `word`, a symbol in `symbol`; the other one is empty. At the end of the text, both are empty.
    """

    def __init__(self, text: str) -> None:
        self._found = _TOKEN.finditer(text)
        self._end = len(text)
        self.next()

    def next(self) -> None:
        found = next(self._found, None)
        self.at = self._end if found is None else found.start(found.lastgroup or 0)
        self.word, self.symbol = ("", "") if found is None else (found["word"] or "", found["symbol"] or "")
        if found is not None and found["other"]:
            self.fail("a name, a value or one of = == != ! ( ) ,")

    def take(self, *symbols: str) -> bool:
        """Skip the next token if it is one of these symbols."""
        if self.symbol and self.symbol in symbols:
            self.next()
            return True
        return False

    def take_word(self, expected: str) -> str:
        if not self.word:
            self.fail(expected)
        word = self.word
        self.next()
        return word

    def fail(self, expected: str) -> NoReturn:
        raise ValueError(f"selector, at character {self.at + 1}: expected {expected}; {_EXAMPLE}")


def _requirement(tokens: _Tokens) -> Requirement:
    is_absent = tokens.take("!")
    where = f"selector, at character {tokens.at + 1}"
    key = tokens.take_word("a key: type, state, liveness, id or label.NAME")
    is_label = key.startswith(_LABEL) and len(key) > len(_LABEL)
    if not is_label and key not in _FIELDS:
        label = "label.NAME" if key == _LABEL else f"label.{key}"
        raise ValueError(f"{where}: unknown key {key!r}; for a label use {label}; {_EXAMPLE}")
    if is_absent or not (tokens.word or tokens.symbol) or tokens.symbol == ",":
        if not is_label:
            raise ValueError(f"{where}: every agent has a {key}, so it needs a value; {_EXAMPLE}")
        return Requirement(key, negated=not is_absent)
    negated = _IS_NEGATED.get(tokens.word or tokens.symbol)
    if negated is None:
        tokens.fail("=, !=, in, notin, or a comma")
    one_value = not tokens.word
    tokens.next()
    if one_value:
        return Requirement(key, negated, frozenset({tokens.take_word("a value")}))
    if not tokens.take("("):
        tokens.fail("(")
    values = {tokens.take_word("a value")}
    while tokens.take(","):
        values.add(tokens.take_word("a value"))
    if not tokens.take(")"):
        tokens.fail(", or )")
    if len(values) > _MAX_VALUES:
        raise ValueError(f"a requirement has at most {_MAX_VALUES} values; {key} has {len(values)}")
    return Requirement(key, negated, frozenset(values))
