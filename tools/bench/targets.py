"""What the project set itself to reach, as ratios of calls that took turns, and whether a benchmark shows it."""

from dataclasses import dataclass

from tools.bench import inputs, step, subnets
from tools.bench.results import Group, Results

CNNS, TRANSFORMERS = ("resnet50", "mobilenet_v2"), ("vit_b_16", "swin_t")
ANY = ("cuda", "cpu")


@dataclass(frozen=True)
class Target:
    """A ratio over / under that must be `at_least` or `at_most` a bound, for some models on some devices."""

    what: str
    title: str
    models: tuple[str, ...]
    over: str
    under: str
    at_least: float | None = None
    at_most: float | None = None
    devices: tuple[str, ...] = ANY
    memory: bool = False
    batch: int | None = None

    @property
    def bound(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"

    def reached(self, ratio: float) -> bool:
        return ratio >= self.at_least if self.at_least is not None else ratio <= self.at_most

    def ratio(self, group: Group) -> tuple[float, float, float] | None:
        """Quartiles."""
        if not self.memory:
            return group.ratio(self.over, self.under)
        if self.over not in group.memory or self.under not in group.memory:
            return None
        return (group.memory[self.over] / group.memory[self.under],) * 3

    def predicted(self, group: Group) -> float | None:
        return None if self.memory else group.by_macs(self.over, self.under)


FASTER, RECIPE = "training step, images/s / reference's with amp", "training step, images/s / reference's without amp"
ALL_AT_ONCE = "all sub-networks in one walk / in separate runs"
CUDA, CPU = ("cuda",), ("cpu",)

TARGETS = (
    Target(FASTER, step.TITLE, CNNS, "reference fp16", "ours fp16", at_least=1.8, devices=CUDA),
    Target(FASTER, step.TITLE, TRANSFORMERS, "reference fp16", "ours fp16", at_least=1.3, devices=CUDA),
    Target(RECIPE, step.TITLE, CNNS, "reference fp32", "ours", at_least=2.5, devices=CUDA),
    Target(RECIPE, step.TITLE, ("resnet50",), "reference fp32", "ours", at_least=2.8, devices=CPU),
    Target("ADN step / plain network's step", step.TITLE, ("resnet50",), "ours", "plain alone", at_most=1.6),
    Target("input, images/s / classic chain's", inputs.TITLE, ("train plain",), "tensor", "classic", at_least=1.6),
    Target("input, images/s / classic chain's", inputs.TITLE, ("train ta_wide",), "tensor", "classic", at_least=1.4),
    Target("latency base-net / super-net", subnets.LATENCY, ("resnet50",), "TTTT", "FFFF", at_most=0.65, batch=64),
    Target(ALL_AT_ONCE, subnets.ALL, ("resnet50",), "tree", "separate runs", at_most=0.45),
    Target(ALL_AT_ONCE, subnets.ALL, TRANSFORMERS, "tree", "separate runs", at_most=0.53),
    Target(
        "peak memory of a step / reference's",
        step.TITLE,
        CNNS + TRANSFORMERS,
        "ours fp16",
        "reference fp16",
        at_most=1.0,
        devices=CUDA,
        memory=True,
    ),
)
THROUGHPUT = 2500  # images/s of ResNet-50 steps on one H200
OURS = ("ours", "ours fp16", "ours compiled")


@dataclass(frozen=True)
class Verdict:
    """What a benchmark says of a target: quartiles and judgement, or why there is none."""

    what: str
    model: str
    bound: str
    predicted: float | None = None
    measured: tuple[float, float, float] | None = None
    reached: bool | None = None
    why: str = ""
    elsewhere: str = ""  # the machine it is a goal for, if another


def verdicts(results: Results) -> list[Verdict]:
    """Every target for every model it names, also those that this run could not judge."""
    rows = [_verdict(results, target, model) for target in TARGETS for model in target.models]
    return [*rows, _throughput(results)]


def _verdict(results: Results, target: Target, model: str) -> Verdict:
    group = results.find(target.title, model, target.over, target.under)
    measured = target.ratio(group) if group and target.batch in (None, group.batch) else None
    if results.machine["device"] not in target.devices:
        return Verdict(target.what, model, target.bound, elsewhere=" or ".join(target.devices))
    if measured is None:
        why = results.skipped.get(f"{target.title}, {model}", "not in this run")
        return Verdict(target.what, model, target.bound, why=why)
    reached = target.reached(measured[1])
    return Verdict(target.what, model, target.bound, target.predicted(group), measured, reached)


def _throughput(results: Results) -> Verdict:
    """The one absolute goal, which belongs to one kind of GPU: the best of our ways counts."""
    what, bound = "training step, images/s", f"≥ {THROUGHPUT}"
    if "H200" not in str(results.machine["name"]):
        return Verdict(what, "resnet50", bound, elsewhere="one H200")
    spreads = [
        sorted(1000 * group.batch / ms for ms in group.spread(name))
        for group in results.groups
        for name in group.samples
        if group.part == "step" and group.model == "resnet50" and name in OURS
    ]
    if not spreads:
        return Verdict(what, "resnet50", bound, why="not in this run")
    low, middle, high = max(spreads, key=lambda spread: spread[1])
    return Verdict(what, "resnet50", bound, measured=(low, middle, high), reached=middle >= THROUGHPUT)
