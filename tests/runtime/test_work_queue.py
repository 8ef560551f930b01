import threading
import time

import pytest

from posegen_ray.runtime.work_queue import WorkQueue


def test_one_at_a_time_in_order_and_the_time_is_accounted_for():
    queue, order, threads = WorkQueue(), [], set()

    def call(number):
        order.append(number)
        threads.add(threading.get_ident())
        time.sleep(0.1)
        return 10 * number

    answers = [None] * 3

    def ask(number):
        answers[number] = queue.run(lambda: call(number))

    callers = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for caller in callers:
        caller.start()
        time.sleep(0.01)
    assert queue.waiting == 2
    assert 0 < queue.present_s < 0.1
    for caller in callers:
        caller.join()
    busy, waited = queue.totals()
    assert (order, answers) == ([0, 1, 2], [0, 10, 20])
    assert len(threads) == 1
    assert busy == pytest.approx(0.3, abs=0.05)
    assert waited == pytest.approx(0.09 + 0.18, abs=0.05)
    assert (queue.waiting, queue.present_s) == (0, 0)


def test_present_call_counts_before_it_ends():
    queue = WorkQueue()

    def call():
        time.sleep(0.05)
        return queue.totals()[0]

    assert queue.run(call) >= 0.05


def test_a_failed_call_says_why_and_lets_the_next_one_through():
    queue = WorkQueue()

    def fail():
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        queue.run(fail)
    assert queue.run(lambda: queue.present_s) > 0
