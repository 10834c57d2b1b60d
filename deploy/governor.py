"""Which requests, in which batch, through which sub-network: so that deadlines hold and answers are good.

No input or output, no clock and no network in here: times are the caller's, in seconds of one clock. A sub-network is a
name with latencies and an accuracy, whatever a network adapts. Any thread may call anything:

    governor = Governor(profile.options(), "slack-fit")
    governor.submit(request, deadline, now)     a request came; False: it cannot be met and is not taken
    decision = governor.decide(now)             a worker is free; None: there is nothing to do
    for request in governor.finish(decision, took):     it ran so long; these are to be answered, each once
    for request in governor.refused(now):       these cannot be met any more
"""

import itertools
import threading
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

BUCKETS = 20  # that earliest-slack parts the range of latencies into
USED = 0.75  # of the time that slack-fit shares out; the rest is for a device that is slower than its profile
LEARNT = 0.1  # from a batch that took longer than promised


class Option(NamedTuple):
    """A sub-network runs up to so many images in so many seconds; of its answers so many per cent are right."""

    subnet: str
    batch: int
    seconds: float
    accuracy: float


class Decision(NamedTuple):
    number: int
    option: Option
    requests: list[Any]


def _closest(fitting: Sequence[Option], width: float) -> Option:
    """Of the options whose latency is closest below the slack: most requests, then most accurate."""
    return _largest([option for option in fitting if option.seconds >= fitting[-1].seconds - width], width)


def _accurate(fitting: Sequence[Option], width: float) -> Option:
    return max(fitting, key=lambda option: (option.accuracy, option.batch, -option.seconds))


def _largest(fitting: Sequence[Option], width: float) -> Option:
    return max(fitting, key=lambda option: (option.batch, option.accuracy, -option.seconds))


# what to choose of the options that fit, by latency; and the width of a bucket
POLICIES: dict[str, Callable[[Sequence[Option], float], Option]] = {
    "slack-fit": _largest,  # into the slack of all who wait; for the others those fit that meet the earliest deadline
    "earliest-slack": _closest,  # the rule of SuperServe (arXiv 2312.16733)
    "most-accurate": _accurate,
    "largest-batch": _largest,
}


class Governor:
    """A queue by earliest deadline, and a policy: one of POLICIES, or the name of a sub-network that always runs.

    A request that cannot be met any more is refused, or with `late` served when nothing else waits. Slack-fit parts
    with a few more under load: where more wait than a batch takes, with those for whom a full one of the quickest
    network is too slow. For smaller batches serve fewer requests a second, and would make all others late as well.

    `slower` says how many times so the device is than its options, by the batches that it ran, at most `slowest`. It
    grows by a tenth with each that takes longer and shrinks by a nineteenth of that with each other: 95 of 100 then
    keep what is promised.
    """

    def __init__(
        self, options: Sequence[Option], policy: str = "slack-fit", late: bool = False, slowest: float = 4.0
    ) -> None:
        names = {option.subnet for option in options}
        if policy not in POLICIES and policy not in names:
            raise ValueError(f"unknown policy {policy!r}; there are {', '.join([*POLICIES, *sorted(names)])}")
        usable = _useful(options) if policy in POLICIES else [o for o in options if o.subnet == policy]
        usable = sorted(usable, key=lambda option: (option.batch, option.seconds))
        self.late, self.looks_behind = late, policy == "slack-fit"
        self.slower, self.slowest = 1.0, slowest
        self.fastest = min(option.seconds for option in usable)
        self.quickest = max(usable, key=lambda option: option.batch / option.seconds)  # most requests a second
        self._batches = list(dict.fromkeys(option.batch for option in usable))
        self._quick = [min(o.seconds for o in usable if o.batch == batch) for batch in self._batches]
        choose = POLICIES.get(policy, _largest)
        self._tables = [_table([o for o in usable if o.batch <= batch], choose) for batch in self._batches]
        self._queue: list[tuple[float, int, Any]] = []  # (-deadline, -number, request): the last one is the next
        self._numbers = itertools.count()
        self._overdue: deque[tuple[float, int, Any]] = deque()
        self._refused: list[Any] = []
        self._running: dict[int, list[tuple[float, int, Any]]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._queue) + len(self._overdue)

    def submit(self, request: Any, deadline: float, now: float) -> bool:
        with self._lock:
            entry = -deadline, -next(self._numbers), request
            if self._left(entry, now) < self.fastest and not self.late:
                if not self._running:  # else it would refuse for ever what it cannot learn to be possible again
                    self._learn(kept=True)
                return False
            insort(self._queue, entry)
            return True

    def refused(self, now: float) -> list[Any]:
        """Requests that were taken and cannot be met any more; each is named once."""
        with self._lock:
            self._part_with_overdue(now)
            refused, self._refused = self._refused, []
            return refused

    def decide(self, now: float) -> Decision | None:
        with self._lock:
            self._part_with_overdue(now)
            if self._queue:
                option = self._choose(now)
                taken = [self._queue.pop() for _ in range(min(option.batch, len(self._queue)))]
            elif self._overdue:
                option = self.quickest
                taken = [self._overdue.popleft() for _ in range(min(option.batch, len(self._overdue)))]
            else:
                return None
            number = next(self._numbers)
            self._running[number] = taken
            return Decision(number, option, [request for _, _, request in taken])

    def finish(self, decision: Decision, took: float | None = None) -> list[Any]:
        """The requests to answer now: those of the decision, and none if it was finished or given back before."""
        with self._lock:
            if took is not None:
                self._learn(kept=took <= decision.option.seconds * self.slower)
            return [request for _, _, request in self._running.pop(decision.number, ())]

    def give_back(self, decision: Decision) -> None:
        """The worker failed: its requests wait again, for another one."""
        with self._lock:
            for entry in self._running.pop(decision.number, ()):
                insort(self._queue, entry)

    def _learn(self, kept: bool) -> None:
        self.slower *= 1 - LEARNT / 19 if kept else 1 + LEARNT
        self.slower = min(max(self.slower, 1.0), self.slowest)

    def _left(self, entry: tuple[float, int, Any], now: float) -> float:
        """Until its deadline, in seconds of the options."""
        return (-entry[0] - now) / self.slower

    def _part_with_overdue(self, now: float) -> None:
        queue = self._queue
        while queue:
            crowded = self.looks_behind and len(queue) > self.quickest.batch
            if self._left(queue[-1], now) >= (self.quickest.seconds if crowded else self.fastest):
                break
            entry = queue.pop()
            if self.late:
                self._overdue.append(entry)
            else:
                self._refused.append(entry[2])

    def _choose(self, now: float) -> Option:
        queue, full = self._queue, self.quickest.batch
        room = slack = self._left(queue[-1], now)
        size = min(bisect_left(self._batches, len(queue)), len(self._batches) - 1)
        if self.looks_behind:  # an equal share of the time for each batch that waits, and for one that comes meanwhile
            firsts = enumerate(range(full, len(queue), full), 2)
            shares = [self._left(queue[-1 - first], now) / batches for batches, first in firsts]
            shares.append(self._left(queue[0], now) / ((len(queue) - 1) // full + 2))
            room = max(min(slack, USED * min(shares)), min(slack, self._quick[size]))
        latencies, choices = self._tables[size]
        return choices[max(bisect_right(latencies, room), 1) - 1]


def _useful(options: Sequence[Option]) -> list[Option]:
    """Without those for which another serves as many, as fast and as well."""

    def worse(one: Option, other: Option) -> bool:
        return one.batch <= other.batch and one.seconds >= other.seconds and one.accuracy <= other.accuracy

    options = list(dict.fromkeys(options))
    return [one for one in options if not any(worse(one, other) and not worse(other, one) for other in options)]


def _table(options: list[Option], choose: Callable) -> tuple[list[float], list[Option]]:
    """Latencies in order, and what is chosen where those up to each of them fit."""
    options = sorted(options, key=lambda option: option.seconds)
    width = (options[-1].seconds - options[0].seconds) / BUCKETS
    return [o.seconds for o in options], [choose(options[:end], width) for end in range(1, len(options) + 1)]
