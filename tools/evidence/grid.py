"""What is trained: settings (a network with its recipe) x methods x seeds. A run is a user's `train_adn.py` command."""

import shlex
from dataclasses import dataclass

METHODS = {  # name → flags, what it is, and its training cost in steps of the super-net alone
    "adn": ("", "ADN", 1.6),
    "super": ("--method individual --skip-cfg super", "super-net alone", 1.0),
    "base": ("--method individual --skip-cfg base", "base-net alone", 0.6),
    "adn-features": ("--fpn", "ADN, outputs + features", 1.65),
    "shared-norms": ("--no-switchable-norms", "ADN without switchable norms", 1.6),
    "labels": ("--no-distillation", "ADN without self-distillation", 1.6),
    "labels-shared-norms": ("--no-distillation --no-switchable-norms", "ADN without both", 1.6),
}
MAIN = ("adn", "super", "base")
ALL = tuple(METHODS)
ALONE = {"super": "F", "base": "T"}  # methods that train one network, and the flags of that network's stages


@dataclass(frozen=True)
class Setting:
    """A network with its recipe, the same for every method."""

    name: str
    network: str  # flags that say which network
    recipe: str  # all others
    methods: tuple[str, ...]
    minutes: float  # of training the super-net alone, roughly

    @property
    def stem(self) -> str:
        return self.name.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Run:
    """One training: what tools/reproduce.py keeps in one folder."""

    setting: Setting
    method: str
    seed: int
    all_subnets: bool = True

    @property
    def name(self) -> str:
        return f"{self.setting.name}-{self.method}-{self.seed}"

    @property
    def training(self) -> list[str]:
        """Arguments of train_adn.py, but for --output-dir and --resume."""
        recipe = f"{self.setting.network} {self.setting.recipe} {METHODS[self.method][0]} --seed {self.seed}"
        return shlex.split(recipe)

    @property
    def testing(self) -> list[str]:
        """Arguments for the last test, on all test images; of those who trained one network, of that one counts."""
        shared = ["--no-switchable-norms"] if "shared-norms" in self.method else []
        return [
            *shlex.split(f"{self.setting.network} {_without_training(self.setting.recipe)}"),
            *shared,
            *["--test-only", "--skip-cfg", *self._tested, "--latency-batch", "0", "--no-picture"],
        ]

    @property
    def _tested(self) -> list[str]:
        everything = self.method == "adn" or (self.all_subnets and self.method not in ALONE)
        return ["all"] if everything else ["super", "base"]

    def counts(self, subnet: str) -> bool:
        """Whether a sub-network, by its name, got a training that it could show."""
        return self.method not in ALONE or set(subnet) == set(ALONE[self.method])

    @property
    def minutes(self) -> float:
        return self.setting.minutes * METHODS[self.method][2]


def _without_training(recipe: str) -> str:
    """What of a recipe a test needs: the data and the precision."""
    words = shlex.split(recipe)
    kept = [flag for flag in ("--amp",) if flag in words]
    for flag in ("--data-path", "--workers"):
        if flag in words:
            kept += [flag, words[words.index(flag) + 1]]
    return shlex.join([*kept, "--batch-size", "250"])


@dataclass(frozen=True)
class Grid:
    """A named set of settings and seeds. `note` marks it wherever its results are shown."""

    name: str
    note: str
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    all_subnets: bool = True  # of the ablation's networks too

    def runs(self) -> list[Run]:
        """Setting by setting, a whole seed before the next, so that a grid cut short still compares like with like."""
        return [
            Run(setting, method, seed, self.all_subnets)
            for setting in self.settings
            for seed in self.seeds
            for method in setting.methods
        ]
