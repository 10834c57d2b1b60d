"""The simulated load against the real network on this device: promised and reached, side by side.

    python -m deploy.live profile.json --target-ms 60 --steps 2:80 2:300 --model resnet50 --weights FILE --data-path DIR

Takes the flags of deploy.simulate, and train_adn.py's for network and data. Requests bring images of the test data at
their times of arrival; one worker thread asks the governor, runs what it says and answers. Weights are loaded once.
"""

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploy.governor import Decision, Governor, Option
from deploy.measure import Network, load
from deploy.simulate import Batch, Load, Outcome, command, load_flags, report
from utils.data.loading import collate, load_data, refuse_other_classes
from utils.errors import UserError
from utils.evaluate.accuracy import running
from utils.flags.parsing import COUNT


class Server:
    """A network behind a governor: `submit` from any thread; one thread runs what the governor decides.

    `run(option, requests)` gives an answer for each, called where `inside()` is entered. `answer(request, answer)` is
    called once for each request, with None if it is refused. When `run` fails, `submit` and `close` raise its error.
    """

    def __init__(
        self,
        governor: Governor,
        run: Callable[[Option, list[Any]], Sequence[Any]],
        answer: Callable[[Any, Any], None],
        clock: Callable[[], float] = time.monotonic,
        inside: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> None:
        self.governor, self.run, self.answer, self.clock, self.inside = governor, run, answer, clock, inside
        self.batches: list[Batch] = []
        self._news, self._closed = threading.Condition(), False
        self._failed: BaseException | None = None
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def submit(self, request: Any, deadline: float) -> None:
        if self._failed:
            raise self._failed
        if not self.governor.submit(request, deadline, self.clock()):
            self.answer(request, None)
        with self._news:
            self._news.notify()

    def close(self) -> None:
        """Return when all that was submitted is answered."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._worker.join()
        if self._failed:
            raise self._failed

    def _work(self) -> None:
        try:
            with self.inside():
                while (decision := self._next()) is not None:
                    try:
                        answers = self.run(decision.option, decision.requests)
                    except Exception:
                        self.governor.give_back(decision)
                        raise
                    for request, answer in zip(self.governor.finish(decision), answers, strict=True):
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
                served = len(decision.requests)
                self.batches.append(Batch(start, decision.option.subnet, served, len(self.governor)))
                return decision
            if self._closed and not len(self.governor):
                return None


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
        self.subnets: dict[str, Any] = {}

    def run(self, option: Option, requests: list[int]) -> list[bool]:
        """Whether each answer is right."""
        if option.subnet not in self.subnets:
            self.subnets[option.subnet] = self.model.parse(option.subnet)
        subnet = self.subnets[option.subnet]
        places = torch.tensor(requests, device=self.targets.device) % len(self.targets)
        logits: Tensor = self.model(self.model.images_for(self.images, subnet)[places], subnet)
        return (logits.argmax(1) == self.targets[places]).tolist()


def serve(given: Load, policy: str, images: Images, inside: Callable, outcome: Outcome, part: range) -> None:
    """A part of the load in real time, under one policy."""
    times = given.times.tolist()

    def run(option: Option, requests: list[int]) -> list[tuple[bool, float]]:
        return [(right, option.accuracy) for right in images.run(option, requests)]

    def answer(request: int, found: tuple[bool, float] | None) -> None:
        if found is not None:
            outcome.finished[request] = clock()
            outcome.right[request], outcome.accuracy[request] = found

    start = time.perf_counter() - times[part[0]]

    def clock() -> float:
        return time.perf_counter() - start

    server = Server(given.governor(policy), run, answer, clock, inside)
    for request in part:
        if (early := times[request] - clock()) > 0:
            time.sleep(early)
        server.submit(request, times[request] + given.target)
    server.close()
    outcome.batches += server.batches


def main(argv: Sequence[str]) -> str:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m deploy.live", description=__doc__, formatter_class=form, allow_abbrev=False
    )
    load_flags(parser)
    parser.add_argument("--images", type=COUNT, default=1000, metavar="N", help="of the test data (default: 1000)")
    turns = "the policies take turns, in so many parts of the load: a busy machine then is so for all (default: 5)"
    parser.add_argument("--turns", type=COUNT, default=5, metavar="N", help=turns)
    args, rest = parser.parse_known_args(argv)
    given = Load(args)
    if args.way not in ("eager", "compiled"):
        raise UserError(f"--way {args.way}: live requests run eager or compiled")
    network = load(rest, given.profile.about["threads"])
    if args.way == "compiled":
        network.model.compile()
    images, inside = Images(network, args.images), partial(running, network.model, network.machine.autocast)
    with inside():  # what is chosen and allocated in the first calls is done then
        for option in given.options:
            images.run(option, list(range(option.batch)))
    count = len(given.times)
    reached = {policy: Outcome(given.target, given.times, np.full(count, np.nan)) for policy in given.policies}
    edges = np.searchsorted(given.times, np.linspace(0, given.times[-1], args.turns + 1)[1:-1]).tolist()
    for part in map(range, [0, *edges], [*edges, count]):
        for policy, outcome in reached.items():
            if part:
                serve(given, policy, images, inside, outcome, part)
    promised = {policy: given.simulated(policy) for policy in given.policies}
    return report(given, {"simulated": promised, "live": reached}, "live", argv)


if __name__ == "__main__":
    sys.exit(command("deploy.live", main, sys.argv[1:]))
