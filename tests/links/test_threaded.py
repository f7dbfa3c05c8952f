"""What links with a thread of their own share: the way to the loop, what is said once, and the budget."""

import asyncio
import threading
from collections.abc import Hashable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from skewd.links import threaded
from skewd.links.threaded import Budget, Condition, Handover, ThreadedLink
from tests.waiting import until


async def test_in_order_from_another_thread() -> None:
    taken: list[int] = []
    handover = Handover(taken.append, limit=10_000)
    thread = threading.Thread(target=lambda: [handover.put(number) for number in range(5000)])
    thread.start()
    await until(lambda: len(taken) == 5000)
    thread.join()
    assert taken == list(range(5000))


async def test_a_loop_that_does_not_turn_keeps_the_limit_waiting() -> None:
    taken: list[int] = []
    handover = Handover(taken.append, limit=16)
    accepted = [handover.put(number) for number in range(1000)]
    assert accepted == [True] * 16 + [False] * 984
    assert len(handover) == 16
    await until(lambda: taken == list(range(16)))
    assert handover.put(7)
    await until(lambda: taken[-1] == 7)


async def test_what_can_not_be_taken_holds_up_nothing_behind_it() -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    taken: list[float] = []
    handover: Handover[int] = Handover(lambda number: taken.append(1 / number))
    for number in (1, 0, 2):
        handover.put(number)
    await until(lambda: len(taken) == 2)
    assert handover.put(4)
    await until(lambda: taken == [1, 0.5, 0.25])
    assert [type(error) for error in told] == [ZeroDivisionError]


async def test_closed_takes_nothing_more() -> None:
    taken: list[int] = []
    handover = Handover(taken.append)
    assert handover.put(1)
    handover.close()
    assert not handover.put(2)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert taken == []


def test_a_change_is_said_once() -> None:
    with capture_logs() as said:
        condition = Condition("kafka", "waiting")
        seen = [condition.trouble]
        condition.well()
        seen.append(condition.trouble)
        for _ in range(100):
            condition.wrong("no broker")
        condition.wrong("another reason")
        seen.append(condition.trouble)
        for _ in range(100):
            condition.well()
    assert seen == ["waiting", None, "another reason"]
    assert [entry["event"] for entry in said] == ["link_down", "link_down", "link_works_again"]


def test_the_budget_pauses_until_its_window_ends() -> None:
    budget = Budget(10, window_s=0.1)
    assert [budget.spend(5.0) for _ in range(9)] == [0.0] * 9
    pause_s = budget.spend(5.04)
    assert 0.059 < pause_s < 0.061
    assert budget.spend(5.1) == 0.0


class Hung(ThreadedLink):
    """A link whose library never comes back."""

    def __init__(self) -> None:
        super().__init__(cast(Any, SimpleNamespace(protocol=SimpleNamespace(link="hung"))), 10**9, ())
        self._handover = Handover(lambda item: None)
        self.free = threading.Event()

    def _work(self) -> None:
        self.free.wait()

    def _ask(self, key: Hashable) -> None:
        """Nobody is."""


async def test_a_thread_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threaded, "_CLOSE_LIMIT_S", 0.01)
    link = Hung()
    link._start(None)
    await link.close()
    assert link._thread.is_alive()
    link.free.set()
    link._thread.join()
