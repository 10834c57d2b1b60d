"""What a network starts from: an ordinary network's weights, or those of one of ours.

Everything must fit but what is meant to differ: a classifier for other classes is new if that is asked for, and tables
of positions are interpolated for other image and window sizes. What was done so is handed back, to be said.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torchvision.models import WeightsEnum

from . import zoo
from .selection import start_twins
from .subnet import ManyNetworks
from .weights import WeightsError, classifier, load_state, model_state, read_checkpoint

# buffers that follow from the size of a window, so a network's own are right
GEOMETRY = ("relative_position_index", "relative_coords_table")


class Start(NamedTuple):
    """Weights to start from, and what they are, in words."""

    source: str
    state: Mapping[str, Tensor]


class Fitted(NamedTuple):
    """What of a network is not just as its weights have it."""

    new: list[str]  # the classifier's tensors, left as they were
    interpolated: list[str]  # tables of positions
    words: str  # the same for a person


def find(name: str, model: str, url: str | None = None, folder: str | None = None) -> Start:
    """What `--init-from` means: a file, of a checkpoint its averaged weights if it has some; or weights by name.

    Names are those that `zoo.named` knows; `url` and `folder` say where their file is, as in `zoo.fetched`.
    """
    weights = zoo.named(name, model)
    path = Path(name) if weights is None else zoo.fetched(weights, model, url, folder)
    if not path.is_file():
        known = ", ".join(zoo.names(model)) or "none are"
        raise WeightsError(f"--init-from {name}: neither a file nor weights that are known of {model}: {known}")
    content = read_checkpoint(path)
    ema = "model_ema" in content
    source = name if weights is None else repr(weights)
    return Start(source + ", its averaged weights" * ema, model_state(content, ema, str(path)))


def load_plain(
    model: ManyNetworks,
    weights: Mapping[str, Tensor] | WeightsEnum,
    *,
    new_head: bool = False,
    progress: bool = True,
    source: str = "state dict",
) -> Fitted:
    """Start from an ordinary network: its weights become the super-net's, each skip norm a copy of its twin.

    Weights of a network of ours are loaded as they are. With `new_head`, a classifier for another number of classes
    stays as the model has it.
    """
    if isinstance(weights, WeightsEnum):
        source, weights = repr(weights), read_checkpoint(zoo.fetched(weights, progress=progress))
    state = model_state(weights, source=source)
    ours = any("_skip." in name for name in state) or state.keys() == model.state_dict().keys()
    target = model if ours else model.view()
    state, fitted = _fit(state, target.state_dict(), new_head)
    load_state(target, state, source)
    if not ours:
        start_twins(model)
    return fitted


def _fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], new_head: bool) -> tuple[dict[str, Tensor], Fitted]:
    """The weights with all that may differ made to fit the network's own."""
    state, head, said = dict(state), classifier(own), []
    misfits = [name for name in own if name in state and state[name].shape != own[name].shape]
    new = [name for name in misfits if name.rpartition(".")[0] == head and state[name].shape[1:] == own[name].shape[1:]]
    if new and new_head:
        said.append(f"classifier new ({len(state[new[0]])} → {len(own[new[0]])} classes)")
        state |= {name: own[name].clone() for name in new}
    tables = {name: _interpolated(name, state[name], own[name].shape) for name in misfits}
    tables = {name: table for name, table in tables.items() if table is not None}
    if tables:
        said.append(f"{len(tables)} position table{'s' * (len(tables) > 1)} interpolated")
    state |= tables | {name: own[name] for name in state.keys() & own.keys() if name.endswith(GEOMETRY)}
    return state, Fitted(new if new_head else [], list(tables), ", ".join(said) or "fits as it is")


def _interpolated(name: str, table: Tensor, wanted: Size) -> Tensor | None:
    """A square table of positions for another size, as torchvision and Swin's authors do it; None for other tensors."""
    if name.endswith("pos_embedding") and table.ndim == 3 and table.shape[::2] == wanted[::2]:  # 1, 1 + side², width
        first, corners = 1, True  # the class token has no place
        token, places = table[0, :1], table[0, 1:]
    elif name.endswith("relative_position_bias_table") and table.ndim == 2 and table.shape[1:] == wanted[1:]:
        first, corners = 0, False  # (2 windows - 1)², heads
        token, places = table[:0], table
    else:
        return None
    old, new = math.isqrt(len(places)), math.isqrt(wanted[-2] - first)
    if not old or old**2 != len(places) or new**2 != wanted[-2] - first:
        return None
    square = places.float().T.reshape(1, -1, old, old)
    square = F.interpolate(square, size=(new, new), mode="bicubic", align_corners=corners)
    return torch.cat([token, square.flatten(2)[0].T.to(table.dtype)]).reshape(wanted)
