"""Batches: what waits is answered together, in order, with an end to the queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from recsys.serve.batching import Batcher, Full


class Model:
    """Answers by doubling, as slowly as it is told, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []
        self.go, self.begun = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, asks: list[list[int]]) -> list[list[int]]:
        self.begun.set()
        self.go.wait(30)
        self.batches.append(list(asks))
        if any(-1 in ask for ask in asks):
            raise ValueError("no")
        return [[2 * one for one in ask] for ask in asks]


class Tickets:
    def __init__(self) -> None:
        self.found: dict[int, object] = {}
        self.changed = threading.Condition()

    def __call__(self, pairs: list[tuple[int, object]]) -> None:
        with self.changed:
            self.found.update(pairs)
            self.changed.notify_all()

    def wait(self, count: int) -> dict[int, object]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.found) >= count, 30)
        return self.found


def test_what_comes_while_the_model_is_busy_is_answered_together() -> None:
    model, tickets = Model(), Tickets()
    model.go.clear()
    with Batcher(model, tickets, most=4) as batcher:
        batcher.submit([0], 0)
        assert model.begun.wait(30)
        for number in range(1, 8):
            batcher.submit([number], number)
        assert batcher.size == 7
        model.go.set()
        assert tickets.wait(8) == {number: [2 * number] for number in range(8)}
    assert [len(batch) for batch in model.batches] == [1, 4, 3]


def test_histories_are_counted_not_requests_and_large_ones_go_alone() -> None:
    model, tickets = Model(), Tickets()
    model.go.clear()
    with Batcher(model, tickets, most=4) as batcher:
        batcher.submit([0], 0)
        assert model.begun.wait(30)
        for number, size in enumerate([3, 2, 9, 1], 1):
            batcher.submit([number] * size, number)
        model.go.set()
        tickets.wait(5)
    assert [[len(ask) for ask in batch] for batch in model.batches] == [[1], [3], [2], [9], [1]]


def test_a_full_queue_refuses_and_says_when_to_ask_again() -> None:
    model, tickets = Model(), Tickets()
    model.go.clear()
    with Batcher(model, tickets, waiting=3) as batcher:
        batcher.submit([0], 0)
        assert model.begun.wait(30)
        batcher.submit([1, 1], 1)
        batcher.submit([2], 2)
        with pytest.raises(Full) as refused:
            batcher.submit([3], 3)
        assert refused.value.retry_after >= 1
        model.go.set()
        assert set(tickets.wait(3)) == {0, 1, 2}
        batcher.submit([4], 4)
        assert tickets.wait(4)[4] == [8]


def test_an_error_is_the_answer_and_the_thread_goes_on() -> None:
    model, tickets = Model(), Tickets()
    with Batcher(model, tickets) as batcher:
        batcher.submit([-1], "bad")
        assert isinstance(tickets.wait(1)["bad"], ValueError)
        batcher.submit([1], "good")
        assert tickets.wait(2)["good"] == [2] and batcher.alive


def test_calls_that_nobody_waits_for_are_left_out_and_many_of_them_starve_nobody() -> None:
    model, tickets = Model(), Tickets()
    model.go.clear()
    with Batcher(model, tickets, waiting=5) as batcher:
        batcher.submit([0], 0)
        assert model.begun.wait(30)
        order: list[str] = []
        gone = batcher.call(lambda: order.append("gone"))
        assert gone.cancel()
        calls = [batcher.call(lambda: order.append("call"))]
        batcher.submit([1], 1)
        calls += [batcher.call(lambda: order.append(f"after {len(model.batches)}")) for _ in range(2)]
        with pytest.raises(Full):
            batcher.call(lambda: None)
        model.go.set()
        tickets.wait(2)
        assert [one.result(30) for one in calls] == [None] * 3
        assert order == ["call", "after 2", "after 2"] and batcher.alive


def test_calls_run_between_batches_and_closing_answers_what_waits() -> None:
    model, tickets = Model(), Tickets()
    model.go.clear()
    batcher = Batcher(model, tickets, most=1)
    batcher.submit([0], 0)
    assert model.begun.wait(30)
    batcher.submit([1], 1)
    done = batcher.call(lambda: len(model.batches))
    failed = batcher.call(lambda: 1 // 0)
    model.go.set()
    assert done.result(30) == 2  # in its turn
    with pytest.raises(ZeroDivisionError):
        failed.result(30)
    batcher.close()
    assert tickets.found == {0: [0], 1: [2]} and not batcher.alive
    with pytest.raises(RuntimeError):
        batcher.submit([2], 2)


class Loop:
    """An event loop of which a test makes the rounds."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, one: Callable[[], None]) -> None:
        self.soon.append(one)

    def round(self) -> None:
        now, self.soon = self.soon, []
        for one in now:
            one()


def test_short_batches_are_ranked_in_the_loop_once_a_round_brings_nothing_more() -> None:
    model, tickets, loop = Model(), Tickets(), Loop()
    with Batcher(model, tickets, most=4, soon=loop.call_soon) as batcher:
        for number in range(3):
            batcher.submit([number], number)
            loop.round()
        assert not model.batches
        loop.round()
        assert model.batches == [[[0], [1], [2]]] and len(tickets.found) == 3
        for number in range(3, 9):
            batcher.submit([number], number)
        loop.round()  # more than a batch waits
        loop.round()
        loop.round()
        assert [len(batch) for batch in model.batches[1:]] == [4, 2]


def test_long_batches_leave_the_loop_and_come_back_when_they_are_short_again() -> None:
    seconds, threads = [0.06], []

    def rank(asks: list[list[int]]) -> list[list[int]]:
        threads.append(threading.get_ident())
        time.sleep(seconds[0])
        return asks

    tickets, loop = Tickets(), Loop()
    with Batcher(rank, tickets, soon=loop.call_soon) as batcher:
        for number in range(30):
            seconds[0] = 0.06 if number < 3 else 0.0
            batcher.submit([number], number)
            while len(tickets.found) <= number:
                loop.round()
                time.sleep(0.001)
    here = threading.get_ident()
    assert threads[0] == here and threads[2] != here and threads[-1] == here
