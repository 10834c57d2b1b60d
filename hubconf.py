"""torch.hub's door: `torch.hub.load("OWNER/REPOSITORY", "resnet50_adn")`.

The names of released networks load them (`pretrained=False`: the network alone); the names of all other networks build
them. Every one is called as `model(images, skip=(True, True, False, False))`. The package `models` of this repository
is imported as `adaptive_depth`: a program that calls this door may have a module `models` of its own.
"""

import functools
import importlib.util
import pathlib
import sys
import zlib

dependencies = ["torch", "torchvision", "numpy", "tqdm"]


def _package():
    folder = pathlib.Path(__file__).resolve().parent / "models"
    name = "adaptive_depth"
    if name in sys.modules and pathlib.Path(sys.modules[name].__file__).parent != folder:  # another version of it
        name += f"_{zlib.crc32(bytes(folder)):08x}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
        sys.modules[name] = package = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(package)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _entry(build, weights):
    @functools.wraps(build)
    def load(pretrained: bool = True, progress: bool = True, **kwargs):
        return build(weights=weights if pretrained else None, progress=progress, **kwargs)

    return load


# torch.hub finds its entry points among the attributes of this module, all that can be called and have no underscore
_models = _package()
globals().update(_models.MODELS)
globals().update(
    (_name, _entry(_models.MODELS[_weights.meta["model"]], _weights))
    for _name, _weights in _models.zoo.RELEASED.items()
)
