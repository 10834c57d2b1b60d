"""One reduction of the gradients per step, however many backward passes the step has."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.processes import broadcast, world_size

BUCKET_BYTES = 25 * 2**20


class GradientReducer:
    """Averages gradients over the processes: every byte once a step, while the step's last backward pass still runs.

    Why not DistributedDataParallel: a step runs several forward and backward passes of different sub-networks. With
    `no_sync` around all but the last, DDP must search that last graph for the parameters it does not touch (skippable
    blocks, the super-net's norms) every step; both passes inside one DDP forward need the memory of both at once.

    Here the first step learns how often each parameter receives a gradient and in which order gradients become final.
    They then live side by side in flat buckets, in that order, and a bucket's all-reduce starts as soon as its last
    gradient has arrived. Thus what only the super-net uses is on its way while the base-net runs.
    """

    def __init__(self, model: nn.Module, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.bucket_bytes = bucket_bytes
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.active = world_size() > 1
        self.buckets: list[_Bucket] = []
        self.arrivals: list[int] = []  # parameters in the order in which gradients came, in the first step
        self.bucket_of: dict[int, _Bucket] = {}
        self.syncing = False
        self.next = 0  # bucket to be sent
        self.early = 0  # buckets that were on their way before `finish`, in the last step
        if self.active:
            broadcast([*model.parameters(), *model.buffers()])
            for number, parameter in enumerate(self.parameters):
                parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._arrived(number))

    def prepare(self, last: bool = True) -> None:
        """Call before the passes of a batch; `last`: the step's last batch, after which gradients are complete."""
        self.syncing = self.active and last
        self.next = 0
        for bucket in self.buckets:
            bucket.due = bucket.arrivals

    def finish(self) -> None:
        """Wait until every gradient is the average over the processes."""
        if not self.syncing:
            return
        self.early = self.next
        if not self.buckets:
            self._make_buckets()
        self._send(everything=True)
        for bucket in self.buckets:
            bucket.work.wait()
            bucket.flat.div_(world_size())
        self.syncing = False

    def _arrived(self, number: int) -> None:
        if not self.syncing:
            return
        if not self.buckets:
            self.arrivals.append(number)
            return
        bucket = self.bucket_of.get(number)
        if bucket is None or bucket.due == 0:
            raise RuntimeError("a parameter received more gradients than in the first step: the passes must not change")
        bucket.due -= 1
        self._send()

    def _send(self, everything: bool = False) -> None:
        """Start the buckets that are complete, in order: all processes must reduce the same one at a time."""
        while self.next < len(self.buckets) and (everything or self.buckets[self.next].due == 0):
            bucket = self.buckets[self.next]
            bucket.work = dist.all_reduce(bucket.flat, async_op=True)
            self.next += 1

    def _make_buckets(self) -> None:
        """Lay the gradients out in the order in which each became final."""
        order = list(dict.fromkeys(reversed(self.arrivals)))[::-1]
        members: list[int] = []
        size = 0
        for number in order:
            members.append(number)
            size += self.parameters[number].nbytes
            if size >= self.bucket_bytes or number == order[-1]:
                bucket = _Bucket([self.parameters[n] for n in members], sum(self.arrivals.count(n) for n in members))
                self.buckets.append(bucket)
                self.bucket_of.update(dict.fromkeys(members, bucket))
                members, size = [], 0
        self.arrivals = []


class _Bucket:
    """Gradients side by side in one tensor; each parameter's `grad` is a view of its part, in its own layout."""

    def __init__(self, parameters: list[nn.Parameter], arrivals: int) -> None:
        self.arrivals = arrivals
        self.due = 0
        self.work: dist.Work | None = None
        self.flat: Tensor = torch.empty(
            sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device
        )
        offset = 0
        for parameter in parameters:
            view = self.flat.as_strided(parameter.size(), parameter.stride(), offset)
            parameter.grad = view.copy_(parameter.grad)
            offset += parameter.numel()
