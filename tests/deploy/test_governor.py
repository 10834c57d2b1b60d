"""The governor's promises: earliest deadline first, refused when hopeless, nothing lost or answered twice."""

import random
import sys
import threading
from collections import Counter

import pytest

from deploy.governor import POLICIES, Governor, Option

# three sub-networks; a batch costs less per image, the larger network twice as much
OPTIONS = [
    Option(name, batch, factor * (0.004 + 0.001 * batch), accuracy)
    for name, factor, accuracy in (("FF", 2.0, 90.0), ("TF", 1.5, 89.0), ("TT", 1.0, 85.0))
    for batch in (1, 2, 4, 8)
]
FASTEST = 0.005
EVERY = [*POLICIES, "FF", "TT"]


def governor(policy: str = "slack-fit", late: bool = False) -> Governor:
    return Governor(OPTIONS, policy, late)


@pytest.mark.parametrize("policy", EVERY)
def test_the_earliest_deadlines_go_first_and_equal_ones_in_order(policy):
    queue, numbers = governor(policy), random.Random(0)
    deadlines = {number: numbers.choice((10.0, 11.0, 12.0, 13.0)) for number in range(100)}
    for number, deadline in deadlines.items():
        assert queue.submit(number, deadline, now=0.0)
    served = []
    while decision := queue.decide(now=0.0):
        served += queue.finish(decision)
    assert served == sorted(deadlines, key=lambda number: (deadlines[number], number))


@pytest.mark.parametrize("policy", EVERY)
def test_whatever_is_chosen_fits_the_earliest_deadline(policy):
    numbers = random.Random(1)
    for _ in range(300):
        queue, now = governor(policy), numbers.uniform(0, 5)
        deadlines = [now + numbers.uniform(0, 0.1) for _ in range(numbers.randint(1, 40))]
        taken = [deadline for deadline in deadlines if queue.submit(deadline, deadline, now)]
        decision = queue.decide(now)
        refused = queue.refused(now)
        assert len(taken) == len(queue) + len(refused) + (len(decision.requests) if decision else 0)
        if decision:
            assert now + decision.option.seconds <= min(decision.requests) + 1e-12
            assert len(decision.requests) <= decision.option.batch
            assert decision.option in OPTIONS
            assert policy in POLICIES or decision.option.subnet == policy


def test_what_cannot_be_met_is_refused_at_once_and_named_once():
    queue = governor()
    assert not queue.submit("hopeless", FASTEST - 1e-6, now=0.0)
    assert queue.submit("just", FASTEST, now=0.0)
    assert queue.submit("later", 1.0, now=0.0)
    assert queue.refused(now=0.0) == []
    assert queue.refused(now=0.001) == ["just"]
    assert queue.refused(now=0.001) == []
    assert queue.decide(now=0.001).requests == ["later"]


def test_or_it_is_served_late_when_nothing_else_waits():
    queue = governor(late=True)
    for request, deadline in (("hopeless", 0.0), ("soon", 0.011), ("later", 1.0)):
        assert queue.submit(request, deadline, now=0.01)
    first = queue.decide(now=0.01)
    assert first.requests == ["later"]
    assert queue.decide(now=0.02).requests == ["hopeless", "soon"]
    assert queue.refused(now=9.0) == []
    assert len(queue) == 0


def test_policies_differ_as_their_names_say():
    chosen = {}
    for policy in EVERY:
        queue = governor(policy)
        for number in range(8):
            queue.submit(number, 0.021 if number == 0 else 10.0, now=0.0)
        option = queue.decide(now=0.0).option
        chosen[policy] = option.subnet, option.batch
    assert chosen == {
        "slack-fit": ("TF", 8),
        "earliest-slack": ("TF", 8),
        "most-accurate": ("FF", 4),
        "largest-batch": ("TF", 8),
        "FF": ("FF", 4),
        "TT": ("TT", 8),
    }


def test_slack_fit_leaves_those_behind_their_time():
    """The earliest deadline alone would allow the large network; sixteen wait for the same moment."""
    for policy, subnet in (("slack-fit", "TT"), ("earliest-slack", "FF")):
        queue = governor(policy)
        for number in range(16):
            queue.submit(number, 0.05, now=0.0)
        assert queue.decide(now=0.0).option.subnet == subnet
        alone = governor(policy)
        alone.submit(0, 0.05, now=0.0)
        assert alone.decide(now=0.0).option.subnet == "FF"


def test_slack_fit_parts_with_a_few_rather_than_with_all():
    """Eight fit a quickest batch; with more waiting, who leaves no time for one goes."""
    queue = governor()
    queue.submit("one alone would be met", FASTEST + 0.001, now=0.0)
    for number in range(8):
        queue.submit(number, 1.0, now=0.0)
    assert queue.decide(now=0.0).requests == list(range(8))
    assert queue.refused(now=0.0) == ["one alone would be met"]


def test_an_answer_is_given_once_and_a_failed_worker_loses_nothing():
    queue = governor()
    for number in range(4):
        queue.submit(number, 1.0 + number, now=0.0)
    first = queue.decide(now=0.0)
    queue.give_back(first)
    assert queue.finish(first) == []  # the worker was not dead but slow
    again = queue.decide(now=0.0)
    queue.give_back(first)
    assert queue.finish(again) == [0, 1, 2, 3]
    assert queue.finish(again) == []
    assert queue.decide(now=0.0) is None


def test_what_batches_took_corrects_the_options_within_bounds_and_both_ways():
    queue = governor("TT")

    def run(times: int, slower: float) -> None:
        for _ in range(times):
            assert queue.submit(0, 1e9, now=0.0)
            decision = queue.decide(now=0.0)
            assert queue.finish(decision, took=decision.option.seconds * slower) == [0]

    run(100, 0.5)
    assert queue.slower == 1
    run(1, 50.0)
    assert queue.slower == pytest.approx(1.1)  # one batch may have had bad luck
    run(50, 2.0)
    assert queue.slower == pytest.approx(2, rel=0.1)
    assert not queue.submit("fitted before", 1.5 * FASTEST, now=0.0)
    run(100, 50.0)
    assert queue.slower == 4
    assert queue.submit("fits", 4.1 * FASTEST, now=0.0)
    queue.finish(queue.decide(now=0.0))
    run(100, 0.9)
    assert 2 < queue.slower < 3
    tried = [queue.submit(n, 1.5 * FASTEST, now=0.0) for n in range(200)]
    assert not tried[0]
    assert tried[-1]  # else, with such deadlines alone, nothing would ever run again


def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match=r"unknown policy 'FFF'; there are slack-fit, .*, FF, TF, TT"):
        governor("FFF")


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("policy", "late"), [("slack-fit", False), ("largest-batch", True), ("TT", False)])
def test_nothing_is_lost_or_answered_twice_whatever_the_threads_do(policy, late):
    queue, ends, interval = governor(policy, late), Counter(), sys.getswitchinterval()
    lock, submitted, clocks = threading.Lock(), threading.Event(), [0.0] * 8
    requests, senders = 4000, 4

    def end(request: int) -> None:
        with lock:
            ends[request] += 1

    def send(sender: int) -> None:
        numbers = random.Random(sender)
        for request in range(sender, requests, senders):
            now = request * 1e-4
            if not queue.submit(request, now + numbers.uniform(0, 0.2), now):
                end(request)

    def work(worker: int) -> None:
        numbers = random.Random(worker)
        while True:
            over, now = submitted.is_set(), clocks[worker]
            decision = queue.decide(now)
            clocks[worker] += 0.001
            for request in queue.refused(now):
                end(request)
            if decision and numbers.random() < 0.1:
                queue.give_back(decision)
            if decision:
                for request in queue.finish(decision):
                    end(request)
            elif over:
                return

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=send, args=(n,)) for n in range(senders)]
        workers = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for thread in threads + workers:
            thread.start()
        for thread in threads:
            thread.join()
        submitted.set()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    while decision := queue.decide(1e9):  # what a worker gave back behind the last one's back
        for request in queue.finish(decision):
            end(request)
    for request in queue.refused(1e9):
        end(request)
    assert len(queue) == 0
    assert ends == Counter(range(requests))


@pytest.mark.parametrize("policy", ["slack-fit", "F"])
def test_a_single_option_is_enough(policy):
    queue = Governor([Option("F", 2, 0.01, 80.0)], policy)
    assert all(queue.submit(number, 1.0, now=0.0) for number in range(3))
    assert queue.decide(now=0.0).requests == [0, 1]
    assert queue.decide(now=0.01).requests == [2]
