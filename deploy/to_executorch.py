"""ExecuTorch with XNNPACK: a method a sub-network, named like it, and `forward`. Equal weights are stored once.

Where a norm is folded into its convolution, the two twins make two convolutions of it: this file is larger than the
other formats'. Facts are in a JSON file beside it.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import Tensor

from deploy.switch import Wanted, single
from utils.files import write_json


def save(wanted: Wanted, path: Path) -> None:
    model = wanted.model
    programs = {} if wanted.alone else {model.name(skip): single(wanted, skip) for skip in wanted.subnets}
    programs["forward"] = single(wanted, wanted.alone or model.subnets[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lowered = to_edge_transform_and_lower(programs, partitioner=[XnnpackPartitioner()]).to_executorch()
    with open(path, "wb") as file:
        lowered.write_to_file(file)
    write_json(path.with_name(f"{path.name}.json"), wanted.facts)


def faults(path: Path) -> list[str]:
    return []


def runner(path: Path) -> Callable[[Tensor, tuple[bool, ...]], Tensor]:
    program = Runtime.get().load_program(path)
    loaded = {}

    def run(images: Tensor, skip: tuple[bool, ...]) -> Tensor:
        several = len(program.method_names) > 1  # of depths
        word = "".join("FT"[flag] for flag in skip) if several else "forward"
        name = word if word in program.method_names else "forward"
        if name not in loaded:
            loaded.clear()  # a method keeps memory of its own
            loaded[name] = program.load_method(name)
        return loaded[name].execute([images])[0].clone()

    return run
