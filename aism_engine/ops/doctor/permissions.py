"""Which rights the engine needs: every command that it sends, or a script of its sends, on which key or channel.

A key with a name in it is tried with a sample; what is missing is told as a pattern.
"""

from collections.abc import Iterable, Sequence
from typing import Final

SAMPLE: Final = "aism-doctor"
"""Stands for every id: that of an agent, a command, a message."""
_CHANNELS: Final = frozenset({"PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE"})
_WITH_SUBCOMMAND: Final = frozenset({"CLIENT", "XINFO"})
EVALS: Final = frozenset({"EVAL", "EVALSHA"})


def lacking(refused: Iterable[Sequence[str]], needed: Iterable[Sequence[str]]) -> list[str]:
    """Write what is missing as rules of an ACL: the commands, then the patterns of keys and of channels.

    The server does not say whether it was the command or the key: where a command is refused on every key it is the
    command, where a key is refused to every command it is the key, and in doubt both. Each rule is one that is needed.
    """
    missing = {tuple(words) for words in refused}
    allowed = [words for words in map(tuple, needed) if words not in missing]
    good_commands = {_command(words) for words in allowed}
    good_targets = {_target(words) for words in allowed}
    commands, targets = set(), set()
    for words in missing:
        command, target = _command(words), _target(words)
        doubtful = command in good_commands and target in good_targets
        if command not in good_commands or doubtful:
            commands.add(f"+{command}")
        if target and (target not in good_targets or doubtful):
            targets.add(f"{'&' if words[0] in _CHANNELS else '~'}{target.replace(SAMPLE, '*')}")
    return [*sorted(commands), *sorted(targets, key=lambda rule: (rule[0] == "&", rule))]


def told(words: Sequence[str]) -> str:
    """Write down for people what is refused: of a call of a script, on which key."""
    return f"{words[0]} {_target(words)}".rstrip() if words[0] in EVALS else " ".join(words)


def _command(words: Sequence[str]) -> str:
    subcommand = f"|{words[1]}" if words[0] in _WITH_SUBCOMMAND else ""
    return f"{words[0]}{subcommand}".lower()


def _target(words: Sequence[str]) -> str:
    """Give the key or channel that a command is about."""
    name = words[0]
    if name in EVALS:
        return words[3] if len(words) > 3 else ""  # noqa: PLR2004  script, number of keys, key
    place = 2 if name in _WITH_SUBCOMMAND else 1
    return words[place] if len(words) > place and name != "CLIENT" else ""
