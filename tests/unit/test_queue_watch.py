"""Laws of the watch: a consumer waits for its queue without polling while the server blocks, and polls otherwise."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from aism_engine.errors import ServerUnavailableError
from aism_engine.services.queue_watch import QueueWatch
from aism_engine.services.wakeup import Wakeup, Watermark

NEVER_S = 3600.0
DENIED = ServerUnavailableError("noperm", "no permission")


class Tail:
    """A queue whose calls have the given outcomes, in order. Each later call blocks until it is cancelled."""

    def __init__(self, *outcomes: Any) -> None:  # noqa: ANN401 - a message, None or an error
        self._outcomes = list(outcomes)
        self.calls = 0

    async def wait(self, _max_bytes: int) -> bytes | None:
        self.calls += 1
        if not self._outcomes:
            await asyncio.Event().wait()
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome if outcome is None else bytes(outcome)


class RecordingWakeup(Wakeup):
    """Records how long each wait may take."""

    def __init__(self) -> None:
        super().__init__()
        self.timeouts: list[float] = []

    async def wait(self, timeout_s: float) -> None:
        self.timeouts.append(timeout_s)
        await super().wait(NEVER_S)


async def watched(outcomes: Sequence[Any], waits: int = 1) -> tuple[list[bytes | None], Tail, list[float]]:
    tail, wakeup = Tail(*outcomes), RecordingWakeup()
    watch = QueueWatch(tail, None, wakeup)  # type: ignore[arg-type]
    found = [await watch.wait(0.05, 1024) for _ in range(waits)]
    await watch.close()
    return found, tail, wakeup.timeouts


async def test_the_watch_returns_the_message_that_ends_the_wait() -> None:
    found, tail, _ = await watched([None, None, b"message"])
    assert (found, tail.calls) == ([b"message"], 3)


async def test_a_message_that_is_too_large_only_wakes() -> None:
    found, _, _ = await watched([b""])
    assert found == [None]


async def test_the_poll_interval_counts_only_while_the_server_does_not_block() -> None:
    """The first wait does not know yet whether the server blocks."""
    assert (await watched([b"1", b"2", DENIED, b"3"], waits=3))[2] == [0.05, 2.0, 2.0]
    assert (await watched([b"1", DENIED], waits=2))[2] == [0.05, 2.0]
    tail, wakeup = Tail(b"1", DENIED), RecordingWakeup()
    watch = QueueWatch(tail, None, wakeup)  # type: ignore[arg-type]
    for _ in range(2):
        await watch.wait(0.05, 1024)
    wakeup.set()
    await watch.wait(0.05, 1024)
    assert wakeup.timeouts[-1] == 0.05
    await watch.close()


async def test_a_refusal_is_logged_once_and_lets_the_consumer_poll() -> None:
    with capture_logs() as logs:
        found, _, _ = await watched([DENIED])
    assert found == [None]
    assert [entry["event"] for entry in logs] == ["watch_denied"]


async def test_an_outage_is_left_to_the_next_peek() -> None:
    with capture_logs() as logs:
        found, _, _ = await watched([ServerUnavailableError("refused", "no server")])
    assert (found, logs) == ([None], [])


async def test_other_wakeups_do_not_repeat_the_call() -> None:
    tail, wakeup = Tail(), Wakeup()
    watch = QueueWatch(tail, None, wakeup)  # type: ignore[arg-type]
    for _ in range(3):
        waiting = asyncio.create_task(watch.wait(NEVER_S, 1024))
        while not tail.calls:  # noqa: ASYNC110 - the call starts in another task
            await asyncio.sleep(0)
        wakeup.set()
        assert await waiting is None
    assert tail.calls == 1
    await watch.close()


async def test_a_bug_is_raised_in_the_consumer() -> None:
    watch = QueueWatch(Tail(ValueError("a bug")), None, Wakeup())  # type: ignore[arg-type]
    await watch.wait(0.0, 1024)
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="a bug"):
        await watch.wait(0.0, 1024)
    await watch.close()


async def test_refreshing_the_watermark_asks_for_a_peek_and_waits_for_it() -> None:
    """A peek that began earlier does not count. The queue may still have unread messages afterwards."""
    asked: list[None] = []
    watermark = Watermark(lambda: asked.append(None))
    watermark.observe(1.0, 0)
    refreshing = asyncio.create_task(watermark.refresh(2.0))
    await asyncio.sleep(0)
    watermark.observe(1.5, 0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (refreshing.done(), len(asked)) == (False, 2)
    watermark.observe(2.0, 3)
    await refreshing
    assert (watermark.applied_until, watermark.has_unread) == (1.5, True)
    await watermark.refresh(2.0)
    assert len(asked) == 2
