"""What is trained: settings x methods x seeds. One more method or setting is one more line here."""

from typing import Literal, NamedTuple


class Method(NamedTuple):
    """`{sizes[1]}` in a title or in flags is the setting's second size of images."""

    title: str
    tested: str  # which sub-networks
    training: str | None = ""  # flags of training; None: nothing is trained
    network: str = ""  # flags of training and testing, which win over the setting's
    longer: float = 1  # how many times the setting's epochs
    after: str = ""  # the method whose weights it starts from


METHODS = {
    "adn": Method("ADN", "all"),
    "super": Method("super-net alone", "super", "--method individual --skip-cfg super"),
    "base": Method("base-net alone", "base", "--method individual --skip-cfg base"),
    "adn-features": Method("ADN, outputs + features", "all", "--fpn"),
    "shared-norms": Method("ADN without switchable norms", "all", network="--no-switchable-norms"),
    "labels": Method("ADN without self-distillation", "all", "--no-distillation"),
    "labels-shared-norms": Method("ADN without both", "all", "--no-distillation", "--no-switchable-norms"),
    "middle": Method("ADN with --middle 1", "all", "--middle 1"),
    "mixed": Method("ADN with --base-labels 0.5", "all", "--base-labels 0.5"),
    "warm": Method("ADN with --subpath-temp 4", "all", "--subpath-temp 4"),
    "low-alpha": Method("ADN with --subpath-alpha 0.3", "all", "--subpath-alpha 0.3"),
    "high-alpha": Method("ADN with --subpath-alpha 0.7", "all", "--subpath-alpha 0.7"),
    "adn-longer": Method("ADN, twice as long", "all", longer=2),
    "drawn": Method("one drawn sub-network a step", "all", "--method drawn"),
    "drawn-longer": Method("one drawn sub-network a step, twice as long", "all", "--method drawn", longer=2),
}
MAIN, ALL = ("adn", "super", "base"), tuple(METHODS)
ABLATION = ("labels", "shared-norms", "labels-shared-norms")

# The other systems, on networks of the same make: depth, widths and resolutions of a MobileNetV2, the gate's is a V1.
S, US, GATED = (f"--model {name}_small" for name in ("s_mobilenet_v2", "us_mobilenet_v2", "slimmable_mbnet_v1"))
WIDTHS = "1.0 0.75 0.5 0.35"
DSNET = "--method dsnet --model-ema --model-ema-steps 1 --model-ema-decay 0.99"
ALONE = "--method individual --skip-cfg super"


def smaller(number: int) -> str:
    return f"--val-resize-size {{sizes[{number}]}} --val-crop-size {{sizes[{number}]}}"


def plain_at(number: int) -> Method:
    return Method(f"plain network, tested at {{sizes[{number}]}}", "super", None, smaller(number), after="plain")


def plain_of(number: int) -> Method:
    training = f"{ALONE} --train-crop-size {{sizes[{number}]}}"
    return Method(f"plain network of size {{sizes[{number}]}}", "super", training, smaller(number))


SYSTEMS = {  # what starts from another's weights stands well behind it, so that no process waits
    "adn": METHODS["adn"],
    "plain": Method("plain network", "super", ALONE),
    "dsnet": Method("DS-Net without its gate", "all", DSNET, GATED),
    "slimmable": Method("S-Net", "all", "--method slimmable", S),
    "sandwich": Method("US-Net", WIDTHS, "--method sandwich", US),
    "san": Method("SAN", "all", "--method san --larger-teach", "--model meta_mobilenetv2_small --sizes {sizes}"),
    "gate": Method("DS-Net", "gate", "--method dsnet-gate", GATED, 0.5, "dsnet"),
    "sandwich-labels": Method(
        "US-Net without distillation", WIDTHS, "--method sandwich --no-in-place-distillation", US
    ),
    **{f"plain-at-{number}": plain_at(number) for number in range(1, 5)},
    **{f"plain-of-{number}": plain_of(number) for number in range(1, 5)},
    "gate-corrected": Method(
        "DS-Net, corrected loss", "gate", "--method dsnet-gate --gate-loss corrected", GATED, 0.5, "dsnet"
    ),
    "drawn": METHODS["drawn"],
    "base": METHODS["base"],
    "labels": METHODS["labels"],
    "slimmable-distilled": Method("S-Net with distillation", "all", "--method slimmable --in-place-distillation", S),
}
METHODS |= SYSTEMS


class Setting(NamedTuple):
    """A network with its recipe, the same for every method."""

    name: str
    methods: tuple[str, ...]
    network: str  # flags of training and testing: the network, its images, the precision
    recipe: str  # flags of training
    epochs: int
    sizes: str = ""  # of images, for methods of several


class Sizes(str):
    """As a flag has them; [1] is the second."""

    def __getitem__(self, number: int) -> str:
        return self.split()[number]


Purpose = Literal["training", "raw", "calibrated"]  # then tests with the statistics of training, and with own ones


class Run(NamedTuple):
    setting: Setting
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.setting.name}-{self.method}-{self.seed}"

    @property
    def before(self) -> "Run | None":
        """Whose weights it starts from."""
        after = METHODS[self.method].after
        return self._replace(method=after) if after else None

    @property
    def purposes(self) -> tuple[Purpose, ...]:
        tests = ("raw", "calibrated")
        return tests if METHODS[self.method].training is None else ("training", *tests)

    @property
    def title(self) -> str:
        return METHODS[self.method].title.format(sizes=Sizes(self.setting.sizes))

    @property
    def command(self) -> str:
        """Without a word about where on a machine it runs."""
        return " ".join(["python train_adn.py", *self.flags(self.purposes[0])])

    def flags(self, purpose: Purpose) -> list[str]:
        """Of a user's train_adn.py command, but for folders and weights. The tests are on all test images."""
        method = METHODS[self.method]
        epochs = round(self.setting.epochs * method.longer)
        rest = f"{self.setting.recipe} {method.training} --epochs {epochs}"
        rest = f"{rest} --seed {self.seed} --calibrate 0"
        if purpose != "training":
            batches = 0 if purpose == "raw" else 40
            rest = f"--test-only --skip-cfg {method.tested} --batch-size 250 --latency-batch 0 --no-picture"
            rest = f"{rest} --calibrate {batches} --budget-gmacs 1000"  # with a budget one sub-network has a table too
        return f"{self.setting.network} {method.network} {rest}".format(sizes=Sizes(self.setting.sizes)).split()


class Grid:
    """Settings and seeds; the note stands wherever its results are shown."""

    def __init__(self, note: str, *settings: Setting, seeds: tuple[int, ...] = (0, 1, 2), first: int = 3) -> None:
        """Seed by seed the `first` methods of all settings, then the rest: cut short, it still compares alike."""
        self.note = note
        self.runs = [
            Run(setting, method, seed)
            for part in (slice(first), slice(first, None))
            for setting in settings
            for seed in seeds
            for method in setting.methods[part]
        ]


FASHION, ON_CPU = "--data-path fashion-mnist --amp", "--data-path fashion-mnist --amp --workers 0"
COSINE = "--lr-scheduler cosineannealinglr --norm-weight-decay 0 --bias-weight-decay 0 --print-freq 100"
WARM = f"{COSINE} --lr-warmup-epochs 1 --lr-warmup-method linear"
SGD = f"{WARM} --batch-size 128 --lr 0.1 --weight-decay 5e-4"
ADAMW = "--opt adamw --weight-decay 0.05 --transformer-embedding-decay 0 --clip-grad-norm 5"
SHORT = f"{COSINE} --batch-size 32 --val-images 1000"
SHORT_ADAMW = f"{SHORT} --opt adamw --lr 0.0005 --weight-decay 0.05 --train-images 10000"

SMALL_ADAMW = f"{WARM} --opt adamw --lr 0.003 --weight-decay 0.05 --batch-size 64 --workers 0"


def small(data: str, size: int) -> str:
    return f"--model mobilenet_v2_small --data-path {data} --val-resize-size {size} --val-crop-size {size}"


GRIDS = {
    "full": Grid(
        "all 60,000 training images, 20 epochs, on one GPU",
        Setting("resnet18", ALL, f"--model resnet18 --stem small {FASHION}", SGD, 20),
        Setting("resnet50", MAIN, f"--model resnet50 --stem small {FASHION}", SGD, 20),
        Setting(
            "swin_t",
            MAIN,
            f"--model swin_t --patch-size 2 {FASHION}",
            f"{WARM} --batch-size 128 {ADAMW} --lr 0.001",
            20,
        ),
    ),
    "cpu": Grid(
        "20 epochs of 24,000 (ResNet-20) and 10,000 (ResNet-18) of the 60,000 training images, on CPU cores",
        Setting(
            "resnet20",
            (*MAIN, "drawn"),
            f"--model resnet20 {ON_CPU}",
            f"{WARM} --batch-size 64 --lr 0.1 --weight-decay 5e-4 --train-images 24000 --val-images 1000",
            20,
        ),
        Setting(  # without --amp: on the CPU where it was tried, bfloat16 trained a quarter slower
            "resnet18",
            (*MAIN, "drawn", "labels", "middle", "mixed", "low-alpha", "high-alpha", "adn-longer"),
            "--model resnet18 --data-path fashion-mnist --workers 0",
            f"{SGD} --train-images 10000 --val-images 1000",
            20,
        ),
    ),
    "pairs": Grid(  # its networks differ by depth when trained alone, so the ablation is here
        "a harder task, made by `python -m benchmarks.pairs`: which two garments are in a picture? 100 classes, 8 "
        "epochs of 12,800 pictures of 18 x 18 pixels (ResNet-14, with --halve -o runs/pairs-18) or 38,400 of 36 x 36 "
        "(ResNet-20), on CPU cores",
        Setting(
            "resnet14-pairs",
            (*MAIN, *ABLATION, "drawn", "drawn-longer", "middle", "mixed", "warm"),
            "--model resnet14 --data-path runs/pairs-18 --workers 0",
            f"{COSINE} --batch-size 32 --lr 0.05 --weight-decay 5e-4 --hflip-prob 0.5 --train-images 12800 "
            "--val-images 1000",
            8,
        ),
        Setting(
            "resnet20-pairs",
            MAIN,
            "--model resnet20 --data-path runs/pairs --amp --workers 0",
            f"{WARM} --batch-size 64 --lr 0.1 --weight-decay 5e-4 --hflip-prob 0.5 --train-images 38400 "
            "--val-images 2000",
            8,
        ),
    ),
    "systems": Grid(
        "small MobileNetV2s (the gate's is a V1) on the digits and on 4,000 of Fashion-MNIST's images, on CPU cores",
        Setting(
            "digits",
            tuple(SYSTEMS),
            small("digits", 16),
            f"{SMALL_ADAMW} --train-crop-size 16",
            16,
            "16 14 12 10 8",
        ),
        Setting(
            "fashion-mnist",
            tuple(SYSTEMS),
            small("fashion-mnist", 20),
            f"{SMALL_ADAMW} --train-crop-size 20 --train-images 4000 --val-images 1000",
            8,
            "20 16 14 12 10",
        ),
        first=8,
    ),
    "quick": Grid(
        "QUICK: 10,000 or 12,000 of the 60,000 training images, 8 to 10 epochs, small enough for a CPU",
        Setting(
            "resnet32",
            ALL[:7],
            f"--model resnet32 {ON_CPU}",
            f"{SHORT} --lr 0.05 --weight-decay 5e-4 --train-images 12000",
            8,
        ),
        Setting("resnet18", MAIN, f"--model resnet18 {ON_CPU}", SHORT_ADAMW, 10),
        Setting("swin_t", MAIN, f"--model swin_t --patch-size 7 --window-size 2 {ON_CPU}", SHORT_ADAMW, 8),
    ),
}
