"""The last leg of a batch: from the loader's bytes to floats on the device, on CUDA beside the step before."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from utils.data.loading import Batch


class OnDevice:
    """`for batch in on_device(loader)`: the loader's batches, images as `to_float` gives them, all on the device.

    On CUDA the next batch is copied on a stream of its own while the device computes on the present one. Pinning, which
    such a copy needs, is done in line: it takes the host milliseconds that it is ahead of the device anyway, while a
    thread for it would have to be stopped, joined and asked for its errors wherever the loop may leave.
    """

    def __init__(self, device: torch.device, to_float: nn.Module):
        self.device, self.to_float = device, to_float.to(device)
        self.copying = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        if self.copying is None:
            for batch in loader:
                images = each(batch.images, lambda view: self.to_float(view.to(self.device)))
                yield Batch(images, batch.targets.to(self.device), batch.corrupt)
            return
        for (images, targets, corrupt), copied in one_ahead(map(self._copy, loader)):
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(copied)
            for tensor in (*([images] if isinstance(images, Tensor) else images), targets):
                tensor.record_stream(computing)  # else the next copy could take their memory while they are in use
            yield Batch(each(images, self.to_float), targets, corrupt)

    def _sent(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _copy(self, batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        """Start the copy; it has been made when the event has come."""
        with torch.cuda.stream(self.copying):
            images, targets = each(batch.images, self._sent), self._sent(batch.targets)
            return Batch(images, targets, batch.corrupt), self.copying.record_event()


def each(images: Tensor | list[Tensor], call: Callable[[Tensor], Tensor]) -> Tensor | list[Tensor]:
    """What the call gives for the images, or for each view of them."""
    return call(images) if isinstance(images, Tensor) else [call(view) for view in images]


def one_ahead(items: Iterable[Any]) -> Iterator[Any]:
    """The items; each is handed out when the one after it, and no further one, has been taken."""
    for present, _following in pairwise(chain(items, (None,))):
        yield present
