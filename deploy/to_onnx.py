"""ONNX: a switch of all depths is a graph with one `If` a stage; the inputs are `images` and `skip`.

What torch writes is repaired: a weight that only one branch uses moves into it, since onnxruntime brings only a graph's
own weights into the layout that its convolutions are fast in; and node metadata goes, which is stack traces with paths.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import onnxruntime
import onnxscript  # noqa: F401  torch's exporter needs it
import torch
from torch import Tensor

from deploy.switch import Wanted, whole
from utils.errors import UserError

LIMIT = 2**31 - 2**24  # bytes of weights in one file: protobuf reads no more than 2 GiB
KEY = "adaptive_depth"  # the model's metadata entry with the facts as JSON


def save(wanted: Wanted, path: Path) -> None:
    program = whole(wanted)
    names = ["images"] if wanted.alone else ["images", "skip"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exported = torch.onnx.export(
                program, dynamo=True, input_names=names, output_names=["logits"], optimize=True, verbose=False
            )
        except torch.onnx.OnnxExporterError:
            raise UserError(f"PyTorch {torch.__version__} cannot write this as ONNX: use a newer one") from None
    model = exported.model
    move(model)
    for thing in annotated(model):
        thing.metadata_props.clear()
        thing.doc_string = None
    model.producer_name, model.producer_version = "adaptive-depth", None
    model.metadata_props[KEY] = json.dumps(wanted.facts)
    large = sum(weight.const_value.nbytes for weight in weights_of(model)) > LIMIT
    ir.save(model, path, external_data=f"{path.name}.data" if large else None)


def weights_of(model: ir.Model) -> list[ir.Value]:
    return [weight for graph in model.graphs() for weight in graph.initializers.values()]


def misplaced(graph: ir.Graph) -> list[tuple[ir.Value, ir.Graph]]:
    """A graph's weights that one branch alone uses, with the branch."""
    users = {weight: {use.node.graph for use in weight.uses()} for weight in graph.initializers.values()}
    return [(weight, *found) for weight, found in users.items() if len(found) == 1 and graph not in found]


def move(model: ir.Model) -> None:
    """Weights to the branches that alone use them; those that nothing uses go."""
    for weight in [weight for weight in model.graph.initializers.values() if not weight.uses()]:
        del model.graph.initializers[weight.name]
    for weight, branch in misplaced(model.graph):
        del model.graph.initializers[weight.name]
        branch.initializers[weight.name] = weight


def annotated(model: ir.Model) -> list:
    """Everything that may carry notes of the exporter's."""
    things = [model, *model.graphs(), *model.graph.inputs, *weights_of(model)]
    for node in model.graph.all_nodes():
        things += [node, *node.outputs]
    return things


def faults(path: Path) -> list[str]:
    """What is not as it should be in a written file, apart from its outputs."""
    model = ir.load(path)
    found = [f"{weight.name} is not in the branch that alone uses it" for weight, _ in misplaced(model.graph)]
    model.metadata_props.pop(KEY)
    return found + ["it carries notes of the exporter's"] * any(
        t.metadata_props or t.doc_string for t in annotated(model)
    )


def runner(path: Path, threads: int = 0) -> Callable[[Tensor, tuple[bool, ...]], Tensor]:
    """The file in onnxruntime: images and skip → logits. `threads` 0: as many as it likes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    switched = len(session.get_inputs()) > 1

    def run(images: Tensor, skip: tuple[bool, ...]) -> Tensor:
        flags = {"skip": torch.tensor(skip).numpy()} if switched else {}  # a width, say, is none
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy(), **flags})[0])

    return run
