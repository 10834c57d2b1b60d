"""The official implementation's way of one training step, rebuilt from a description of it, to compare with.

Convolutions in NCHW; float images copied while the host waits; a forward and a backward pass per network, each of
which reduces all gradients if there are several processes; the optimizer as its constructor gives it; and after every
step the accuracies and losses of both networks, fetched from the device one by one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import processes as distributed

TOPK = 500


class ReferenceStep:
    """Call it to train on the same batch once more."""

    def __init__(self, model: nn.Module, images: Tensor, targets: Tensor, device: torch.device, amp: bool) -> None:
        self.super_net, self.base_net = model.super_net, model.base_net
        self.model = model.train()
        if distributed.world_size() > 1:
            self.model = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        self.batch = images, targets
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp)
        self.autocast = lambda: torch.autocast(device.type, dtype=torch.float16, enabled=amp)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        self.optimizer = plain_optimizer(model)

    def __call__(self) -> list[float]:
        images, targets = (tensor.to(self.device) for tensor in self.batch)
        self.optimizer.zero_grad()
        with self.autocast():
            logits_super = self.model(images, self.super_net)
            loss_super = 0.5 * self.criterion(logits_super, targets)
        self.scaler.scale(loss_super).backward()
        with self.autocast():
            logits_base = self.model(images, self.base_net)
            loss_base = 0.5 * distance(logits_base, logits_super.detach())
        self.scaler.scale(loss_base).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        fetched = [loss_super.item(), loss_base.item()]
        for logits in (logits_super, logits_base):
            hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
            fetched += [hits[:, :1].float().sum().item(), hits.float().sum().item()]
        return fetched


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """KL over the teacher's likeliest classes."""
    teacher, classes = teacher.topk(min(TOPK, teacher.shape[1]), dim=1)
    student = student.gather(1, classes)
    return F.kl_div(F.log_softmax(student, dim=1), F.softmax(teacher, dim=1), reduction="batchmean")


def plain_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """SGD for networks of convolutions, AdamW for transformers, as torch constructs them by default."""
    if convolutional(model):
        return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)


def convolutional(model: nn.Module) -> bool:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1
