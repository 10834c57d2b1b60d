"""The simulated load against the real network on this device: promised and reached, side by side.

    python -m deploy.live profile.json --target-ms 60 --steps 2:80 2:300 --model resnet50 --weights FILE --data-path DIR

Takes the flags of deploy.simulate, and train_adn.py's for network and data. Requests bring images of the test data at
their times of arrival; one worker thread asks the governor, runs what it says and answers. Weights are loaded once.

A device is not always as quick as when it was profiled. So the policies take turns, part by part of the load, and
between two of them the thread runs some of what was profiled; the load is also simulated at the pace found there.
"""

import argparse
import contextlib
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from multiprocessing.pool import ThreadPool
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploy import arrivals
from deploy.arrivals import Load
from deploy.command import command
from deploy.governor import Decision, Governor, Option
from deploy.measure import Network, load
from deploy.profile import Means
from deploy.report import Batch, Outcome, report
from deploy.simulate import as_profiled, simulate
from utils.data.loading import collate, load_data, refuse_other_classes
from utils.errors import UserError
from utils.evaluate.accuracy import running
from utils.evaluate.latency import Effort, take_turns
from utils.flags.parsing import COUNT

GLANCE = Effort(warm_up=0, at_least=1, at_most=1000, seconds=0.5)  # at the device's pace between two parts of the load


class Server:
    """A network behind a governor: `submit` from any thread; one thread runs what the governor decides.

    `run(option, requests)` gives an answer for each, called where `inside()` is entered, in `thread`, which may be
    `warmed`. `answer(request, answer)` is called once for each request, with None if it is refused. What ran is noted
    in `batches`, if they are given. When `run` fails, all other methods raise its error.
    """

    def __init__(
        self,
        governor: Governor,
        run: Callable[[Option, list[Any]], Sequence[Any]],
        answer: Callable[[Any, Any], None],
        clock: Callable[[], float] = time.monotonic,
        inside: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        thread: ThreadPool | None = None,
        batches: list[Batch] | None = None,
    ) -> None:
        self.governor, self.run, self.answer, self.clock, self.inside = governor, run, answer, clock, inside
        self.batches, self.thread = batches, thread or ThreadPool(1)
        self._news, self._closed = threading.Condition(), False
        self._failed: BaseException | None = None
        self._work_done = self.thread.apply_async(self._work)

    def check(self) -> None:
        """Raises the error of a `run` that failed."""
        if self._failed:
            raise self._failed

    def submit(self, request: Any, deadline: float) -> None:
        self.check()
        if not self.governor.submit(request, deadline, self.clock()):
            self.answer(request, None)
        with self._news:
            self._news.notify()

    def close(self) -> None:
        """Return when all that was submitted is answered."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._work_done.wait()
        self.check()

    def _work(self) -> None:
        try:
            with self.inside():
                while (decision := self._next()) is not None:
                    start, waiting = self.clock(), len(self.governor)
                    try:
                        answers = self.run(decision.option, decision.requests)
                    except Exception:
                        self.governor.give_back(decision)
                        raise
                    took = self.clock() - start
                    finished = self.governor.finish(decision, took)
                    if self.batches is not None:
                        served = len(decision.requests)
                        self.batches.append(Batch(start, decision.option.subnet, served, waiting, took))
                    for request, answer in zip(finished, answers, strict=True):
                        self.answer(request, answer)
        except Exception as error:  # raised again in the caller's thread
            self._failed = error

    def _next(self) -> Decision | None:
        """Waits for something to do; None: closed, and nothing is left."""
        while True:
            with self._news:
                start = self.clock()
                decision = self.governor.decide(start)
                if decision is None and not self._closed:
                    self._news.wait(0.1)
            for request in self.governor.refused(start):
                self.answer(request, None)
            if decision:
                return decision
            if self._closed and not len(self.governor):
                return None


def warmed(run: Callable, options: Sequence[Option], request: Any, inside: Callable) -> ThreadPool:
    """A thread in which every sub-network has run once at every size: what first calls choose and allocate is there.

    On a GPU each thread searches the algorithms of its convolutions for itself.
    """
    sizes = {(option.subnet, size): option for option in options for size in range(1, option.batch + 1)}

    def run_all() -> None:
        with inside():
            for (_, size), option in sizes.items():
                run(option, [request] * size)

    thread = ThreadPool(1)
    thread.apply(run_all)
    return thread


class Images:
    """Test images on the device. Request number n brings image n, and begins again behind the last."""

    def __init__(self, network: Network, most: int) -> None:
        data = load_data(network.args)
        if network.classes:
            way_out = "give the --data-path of its training"
            refuse_other_classes(str(network.args.weights), network.classes, data.classes, way_out)
        chosen = np.arange(min(most, len(data.val))) * len(data.val) // min(most, len(data.val))
        batch = collate([data.val[int(index)] for index in chosen])
        (self.images, self.targets, _), self.model = next(network.on_device([batch])), network.model

    def run(self, option: Option, requests: list[int]) -> list[tuple[bool, float]]:
        """Whether each answer is right, and how many of the sub-network's are."""
        subnet = self.model.parse(option.subnet)
        places = torch.tensor(requests, device=self.targets.device) % len(self.targets)
        logits: Tensor = self.model(self.model.images_for(self.images, subnet)[places], subnet)
        return [(right, option.accuracy) for right in (logits.argmax(1) == self.targets[places]).tolist()]


def serve(given: Load, governor: Governor, serving: Callable[..., Server], outcome: Outcome, part: range) -> None:
    """A part of the load in real time, under one policy."""
    times = given.times.tolist()
    start = time.perf_counter() - times[part[0]]

    def clock() -> float:
        return time.perf_counter() - start

    def answer(request: int, found: tuple[bool, float] | None) -> None:
        if found is not None:
            outcome.finished[request] = clock()
            outcome.right[request], outcome.accuracy[request] = found

    server = serving(governor, answer=answer, clock=clock, batches=outcome.batches)
    for request in part:
        if (early := times[request] - clock()) > 0:
            time.sleep(early)
        server.submit(request, times[request] + given.target)
    server.close()


def flags(parser: argparse.ArgumentParser) -> None:
    arrivals.flags(parser)
    parser.add_argument("--images", type=COUNT, default=1000, metavar="N", help="of the test data (default: 1000)")
    turns = "the policies take turns, in so many parts of the load: a busy machine then is so for all (default: 10)"
    parser.add_argument("--turns", type=COUNT, default=10, metavar="N", help=turns)


def live(args: argparse.Namespace, others: list[str]) -> str:
    args.network = others  # for the report
    given = Load(args)
    if args.way not in ("eager", "compiled"):
        raise UserError(f"--way {args.way}: live requests run eager or compiled")
    network = load(others, given.profile.about["threads"])
    if args.way == "compiled":
        network.model.compile()
    try:
        for option in given.options:
            network.model.parse(option.subnet)
    except ValueError as error:
        raise UserError(f"{args.profile}: is of another network than {network.args.model} ({error})") from None
    images, inside = Images(network, args.images), partial(running, network.model, network.machine.autocast)
    thread = warmed(images.run, given.options, 0, inside)
    glance = partial(thread.apply, slowness, (images.run, given, network.machine.device, inside))
    serving = partial(Server, run=images.run, inside=inside, thread=thread)
    reached, again = by_turns(given, serving, glance, args.turns)
    return report(given, {"simulated": as_profiled(given), "profiled again": again, "live": reached}, "live")


def slowness(run: Callable, given: Load, device: torch.device, inside: Callable) -> float:
    """How many times its profile's time the device takes now, by the shortest and the longest of the calls there."""
    means, of_time = given.profile.means(given.args.way), attrgetter("seconds")
    ends = min(given.options, key=of_time), max(given.options, key=of_time)
    calls = {(option.subnet, option.batch): partial(run, option, [0] * option.batch) for option in ends}
    with inside(), torch.cuda.device(device if device.type == "cuda" else -1):  # a thread begins on the first GPU
        times = take_turns(calls, device, GLANCE, waiting=True)
    return sum(map(sum, times.values())) / sum(1000 * means[call] * len(found) for call, found in times.items())


def by_turns(
    given: Load, serving: Callable[..., Server], glance: Callable[[], float], turns: int
) -> tuple[dict[str, Outcome], dict[str, Outcome]]:
    """The load under each policy, live; and simulated, at the pace that the device was found to have meanwhile."""
    means, unknown = given.profile.means(given.args.way), np.full(len(given.times), np.nan)
    reached = {policy: Outcome(given.target, given.times, unknown.copy()) for policy in given.policies}
    again = {policy: Outcome(given.target, given.times) for policy in given.policies}
    governors = {policy: given.governor(policy) for policy in given.policies}
    edges = np.searchsorted(given.times, np.linspace(0, given.times[-1], turns + 1)[1:-1]).tolist()
    parts = list(filter(None, map(range, [0, *edges], [*edges, len(given.times)])))
    before, slow = glance(), {}
    for part in parts:
        for policy, outcome in reached.items():
            serve(given, governors[policy], serving, outcome, part)
            after = glance()
            slow[policy, part] = (before + after) / 2
            before = after
    own = own_time(reached.values())
    for policy, outcome in again.items():
        governor = given.governor(policy)
        for part in parts:
            simulate(outcome, governor, partial(_duration, means, slow[policy, part], own), part)
    return reached, again


def own_time(outcomes: Iterable[Outcome]) -> float:
    """Seconds that the server itself takes from one batch to the next, where requests wait."""
    pairs = (pair for outcome in outcomes for pair in pairwise(outcome.batches) if pair[0].waiting)
    return statistics.median([two.start - one.start - one.seconds for one, two in pairs] or [0.0])


def _duration(means: Means, slow: float, own: float, option: Option, images: int, now: float) -> float:
    return slow * means[option.subnet, images] + own


def main(argv: list[str] | None = None) -> int:
    return command("deploy.live", __doc__, flags, live, argv)


if __name__ == "__main__":
    sys.exit(main())
