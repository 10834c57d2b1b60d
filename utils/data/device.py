"""The last leg of a batch: from the loader's bytes to floats on the device, on CUDA beside the step before."""

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import Any

import torch
from torch import nn

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
                images, targets = batch.images.to(self.device), batch.targets.to(self.device)
                yield Batch(self.to_float(images), targets, batch.corrupt)
            return
        for (images, targets, corrupt), copied in one_ahead(map(self._copy, loader)):
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(copied)
            for tensor in (images, targets):
                tensor.record_stream(computing)  # else the next copy could take their memory while they are in use
            yield Batch(self.to_float(images), targets, corrupt)

    def _copy(self, batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        """Start the copy; it has been made when the event has come."""
        with torch.cuda.stream(self.copying):
            pinned = batch.images.pin_memory(), batch.targets.pin_memory()
            images, targets = (tensor.to(self.device, non_blocking=True) for tensor in pinned)
            return Batch(images, targets, batch.corrupt), self.copying.record_event()


def one_ahead(items: Iterable[Any]) -> Iterator[Any]:
    """The items; each is handed out when the one after it, and no further one, has been taken."""
    for present, _following in pairwise(chain(items, (None,))):
        yield present
