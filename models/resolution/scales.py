"""Networks whose resolution is chosen at run time: an ordinary network taken apart, and put together for each scale.

A sub-network is a `Scale`. Its word is the side of the images, "176", if that is a trained one; else also which branch
it takes, "176@160": the kernels and norms that were trained at 160. "176@192+160" is half way between two branches,
"176@160:0.55" has kernels of another encoding than the branch's own. All are as they come out of training, or
calibrated.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import nn

from ..selection import rebuild
from ..views import Views
from .layers import Classifier, GeneratedConv2d, NormOfBranch, Shared

SIZES = (224, 192, 160, 128, 96)
ENCODING = 0.7  # of the largest size's kernels; the others' are in proportion: S / 320 where it is 224
WORD = re.compile(r"(\d+)(?:@(\d+(?:\+\d+)*))?(?::(\d*\.?\d+))?")


class Scale(NamedTuple):
    size: int  # the side of the images
    branches: tuple[int, ...]  # whose norms; of several the mean
    encoding: float  # of the kernels


class ScaleAdaptive(Views):
    """Made of an ordinary network by `_hold`, layer by layer: what a layer becomes, and its name.

    Convolutions become generated ones, norms one of each branch, and all else that has weights is shared.
    """

    settings: ClassVar[tuple[str, ...]] = ("sizes",)
    default_sizes: ClassVar[tuple[int, ...]] = SIZES

    def __init__(self, plain: nn.Module, names: Mapping[nn.Module, str], sizes: Sequence[int]) -> None:
        """`names`: of the layers that have weights, here."""
        super().__init__()
        if not sizes or list(sizes) != sorted(set(sizes), reverse=True) or sizes[-1] < 1:
            raise ValueError(f"sizes {list(sizes)}: give each once, from the largest to the smallest")
        self.sizes = tuple(sizes)
        self._places: dict[nn.Module, str] = {}  # in the ordinary network → names of what runs there
        places = {layer: nn.Identity() for layer in names}
        for layer, name in names.items():
            self._places[places[layer]] = name
            self._hold(name, layer)
        self.__dict__["_ordinary"] = rebuild(plain, places)  # no child, so it has no part in weights and modes

    def _hold(self, name: str, layer: nn.Module) -> nn.Module:
        if isinstance(layer, nn.BatchNorm2d):
            layer = NormOfBranch(layer, len(self.sizes))
        elif isinstance(layer, nn.Conv2d) and re.search(r"\bfc\d*$", name):
            layer = GeneratedConv2d(layer)
        else:
            layer = Shared(Classifier.of(layer) if isinstance(layer, nn.Linear) else layer)
        owner: nn.Module = self
        *path, last = name.split(".")
        for part in path:
            owner = owner._modules.setdefault(part, nn.Module())
        owner.add_module(last, layer)
        return layer

    def at(self, scale: Scale) -> nn.Module:
        return rebuild(self._ordinary, {place: self.get_submodule(name) for place, name in self._places.items()})

    def _of(self, size: int, branches: tuple[int, ...]) -> Scale:
        encodings = [ENCODING * self.sizes[branch] / self.sizes[0] for branch in branches]
        return Scale(size, branches, round(sum(encodings) / len(encodings), 6))

    @property
    def subnets(self) -> list[Scale]:
        return [self._of(size, (branch,)) for branch, size in enumerate(self.sizes)]

    def size(self, subnet: Scale | None = None) -> int:
        return self.checked(subnet).size

    def name(self, subnet: Scale) -> str:
        size, branches, encoding = self.checked(subnet)
        trained = "+".join(str(self.sizes[branch]) for branch in branches)
        word = f"{size}" if trained == str(size) else f"{size}@{trained}"
        return word if encoding == self._of(size, branches).encoding else f"{word}:{encoding}"

    def parse(self, word: str) -> Scale:
        found = WORD.fullmatch(word)
        size, of, encoding = found.groups() if found else (None, None, None)
        trained = sorted({int(number) for number in (of or size or "0").split("+")}, reverse=True)
        if not found or not int(size) or not set(trained) <= set(self.sizes):
            known = " ".join(map(str, self.sizes))
            spelled = "SIZE@TRAINED such as {0}@{0}, SIZE@TRAINED+TRAINED, and :ENCODING behind".format(self.sizes[-1])
            raise ValueError(f"{word!r} is no sub-network: it is one of {known}; or, for other images, {spelled}")
        scale = self._of(int(size), tuple(map(self.sizes.index, trained)))
        return scale if encoding is None else scale._replace(encoding=float(encoding))

    def checked(self, subnet: Any) -> Scale:
        if subnet is None:
            return self.subnets[0]
        if not isinstance(subnet, Scale) or not subnet.branches or not 0 <= subnet.branches[-1] < len(self.sizes):
            raise ValueError(f"{subnet!r} is no sub-network of this network: parse() makes one of a word")
        return subnet


def numbered(block: nn.Module, path: str, number: bool = True) -> dict[nn.Module, str]:
    """A block's convolutions in order as fc1, fc2, …, its norms as bn1, bn2, …, below `path`."""
    names: dict[nn.Module, str] = {}
    for kind, word in ((nn.Conv2d, "fc"), (nn.BatchNorm2d, "bn")):
        layers = [module for module in block.modules() if isinstance(module, kind)]
        names |= {layer: f"{path}.{word}{place if number else ''}" for place, layer in enumerate(layers, start=1)}
    return names
