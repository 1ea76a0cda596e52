"""Laws of the screen of `top` and `dev`, and of the keys that change it."""

from typing import Any

import pytest

from aism_engine.cli.keyboard import parse_keys
from aism_engine.cli.screen import Screen
from aism_engine.domain.agents.agent import AgentRecord, Divergence, Held, Hold, Liveness
from aism_engine.ops.views import AgentView, Overview, Problem
from aism_engine.store.lease import LeaseStatus

OPENED_AT = "2026-11-23T02:00:00.000Z"
LEASE = LeaseStatus("1:a", 100.0, 340.0)


def view(agent_id: str, silent_since: float | None = None, **fields: Any) -> AgentView:  # noqa: ANN401
    record = {"type": "builder", "state": "inbox", "since": 5.0, "first_seen_at": 1.0, "liveness": Liveness.FRESH}
    return AgentView(agent=AgentRecord(agent_id=agent_id, **{**record, **fields}), marked_silent_at=silent_since)


def diverged(rule: str, reason: str) -> dict[str, Divergence]:
    return {rule: Divergence(since=OPENED_AT, confidence="certain", reason=reason)}


def shown(*agents: AgentView, held: Held | None = None) -> Screen:
    screen = Screen(lambda: ["the title"], slowest=5)
    overview = Overview(lease=LEASE, fleet_hold=held or Held(), agents=[*agents], queues={}, rates={}, commands=[])
    screen.update(overview)
    return screen


def draw(screen: Screen, width: int | None = 120, height: int = 60, *, keys: bool = True) -> list[str]:
    return [line.plain for line in screen.draw(width, height, keys=keys)]


ILL = (
    view("lost-1", liveness=Liveness.LOST, lost_from="deep_work", lost_at=3.0),
    view("silent-1", silent_since=4.0),
    view("stuck-1", divergences=diverged("never_acks", "acknowledged none")),
    view("diverging-1", divergences=diverged("duplicate_instance", "two instances")),
    view("waiting-1", waits_for="human"),
    view("held-1", hold=Hold.PAUSE, held_at=4.0, held_by="bob@host", hold_reason="quota"),
)


def test_each_problem_is_listed_by_name_with_its_reason() -> None:
    lines = draw(shown(*ILL, view("well-1")))
    titles = [line for line in lines if line.endswith(": 1")]
    assert titles == [
        *("LOST: 1", "SILENT: 1", "STUCK: 1", "DIVERGING: 1", "WAITING FOR HUMAN: 1", "HELD: 1", "NO PROBLEM: 1")
    ]
    below = [lines[lines.index(title) + 1] for title in titles]
    assert [line.split()[0] for line in below] == [*(each.agent.agent_id for each in ILL), "well-1"]
    reasons = ("was in deep_work", "-", "acknowledged none", "two instances", "-", "pause by bob@host: quota", "-")
    assert [line.endswith(reason) for line, reason in zip(below, reasons, strict=True)] == [True] * 7


def test_an_agent_with_two_problems_is_listed_under_both() -> None:
    ill = view("a-1", silent_since=4.0, divergences={**diverged("never_acks", "x"), **diverged("forbidden_state", "y")})
    assert ill.problems == [Problem.SILENT, Problem.STUCK, Problem.DIVERGING]
    lost = view("a-2", silent_since=4.0, liveness=Liveness.LOST)
    assert lost.problems == [Problem.LOST]


@pytest.mark.parametrize("height", [1, 2, 5, 12, 24, 50, 200])
@pytest.mark.parametrize("width", [10, 40, 200])
def test_a_screen_fits_its_terminal(height: int, width: int) -> None:
    """Whatever is shown. With keys it is as high as the terminal, and its last line is about the keys."""
    many = [view(f"builder-{n}", liveness=Liveness.LOST, lost_from="inbox", lost_at=3.0) for n in range(300)]
    screen = shown(*many, *ILL, held=Held(hold=Hold.PAUSE, hold_reason="x" * 300))
    for key in ("down", "enter", "escape", "?"):
        lines = draw(screen, width, height)
        assert (len(lines), max(map(len, lines)) <= width) == (height, True)
        assert lines[-1].startswith("s sort")
        screen.press(key)


def test_a_long_list_ends_with_the_command_that_lists_it() -> None:
    lost = [view(f"builder-{number}", liveness=Liveness.LOST) for number in range(1, 101)]
    lines = draw(shown(*lost, view("well-1")), height=30)
    names = [line.split()[0] for line in lines if line.startswith("builder-")]
    assert names == [f"builder-{number}" for number in range(1, len(names) + 1)]
    assert f"… and {100 - len(names)} more: aism-engine agents list --problem lost" in lines
    assert len(names) > 10


def test_the_selection_reaches_every_agent() -> None:
    """Its line is always visible, also in a list that is longer than the screen."""
    lost = [view(f"builder-{number}", liveness=Liveness.LOST) for number in range(1, 41)]
    screen = shown(*lost, view("well-1"))
    for expected in [*(each.agent.agent_id for each in lost), "well-1", "well-1"]:
        (selected,) = [line for line in screen.draw(80, 24, keys=True) if line.style == "reverse"]
        assert selected.plain.split()[0] == expected
        screen.press("down")
    screen.press("up")
    screen.press("enter")
    assert screen.agent_id == "builder-40"
    assert draw(screen)[0].split() == ["agent_id", "builder-40"]
    assert screen.press("escape")
    assert screen.agent_id is None


def test_the_same_agent_stays_selected_when_others_come_and_go() -> None:
    agents = [view(f"a-{number}") for number in (1, 2, 3)]
    screen = shown(*agents)
    screen.press("down")
    for listed in ([agents[1], agents[2]], [view("a-0"), *agents]):
        overview = Overview(lease=LEASE, fleet_hold=Held(), agents=listed, queues={}, rates={}, commands=[])
        screen.update(overview)
        screen.press("enter")
        assert screen.agent_id == "a-2"
        screen.press("q")


def test_s_sorts_each_list() -> None:
    screen = shown(
        view("a-1", since=9.0, state="z"), view("a-2", since=7.0, type="a"), view("a-3", since=8.0, state="b")
    )

    def order() -> str:
        return "".join(line[2] for line in draw(screen) if line.startswith("a-"))

    orders = {}
    for _ in range(6):
        orders[draw(screen)[-1].rpartition("sorted by ")[2]] = order()
        screen.press("s")
    assert orders == {"name": "123", "time": "231", "open commands": "123", "type": "213", "state": "321"}


def test_q_leaves_what_is_open_and_then_the_program() -> None:
    screen = shown(view("a-1"))
    for key in ("?", "enter"):
        screen.press(key)
        assert (screen.press("q"), screen.press("q")) == (True, False)
        assert (screen.press("escape"), screen.press("quit")) == (False, False)


def test_text_of_an_agent_cannot_control_the_terminal() -> None:
    screen = shown(view("a-1", state="\x1b[2J", hold=Hold.PAUSE, hold_reason="\x1b[2J\nforged"))
    lines = draw(screen)
    screen.press("enter")
    for text in (*lines, *draw(screen), *draw(screen, None, keys=False)):
        assert text.isprintable(), text
    screen.agent_id, screen.agent = "\x1b[2J", None
    assert draw(screen)[0] == r"agent \x1b[2J is no longer known"


def test_keys_are_found_in_what_a_terminal_sends() -> None:
    """An incomplete sequence waits for its end, and an unknown one is one key."""
    assert parse_keys("s\x1b[A\x1bOBjk\r\x1b[5~?") == (["s", "up", "down", "down", "up", "enter", "\x1b[5~", "?"], "")
    for incomplete in ("\x1b", "\x1b[", "\x1b[1;", "\x1bO"):
        assert parse_keys(f"q{incomplete}") == (["q"], incomplete)


def test_a_missing_leader_is_shown() -> None:
    """With the time since the last renewal of the lease."""
    screen = shown()
    for lease, expected in ((LEASE, False), (LEASE._replace(token=None), True)):
        screen.update(Overview(lease=lease, fleet_hold=Held(), agents=[], queues={}, rates={}, commands=[]))
        text = "\n".join(line.plain for line in screen.draw(None, 20, keys=False))
        assert ("no engine has led for 4m" in text) is expected
