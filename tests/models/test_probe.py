"""Stages found by a probe, and depth put on ordinary networks that are made here."""

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

import models
from models import probe
from models.any_timm import adapt


class Block(nn.Module):
    """Residual where it keeps the number of channels."""

    def __init__(self, channels: int, out: int, gate: float = 1.0) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()
        self.residual, self.gate = channels == out, gate

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.conv(x)))
        return self.gate * x + y if self.residual else y


class Unlike(Block):
    """Keeps the shape, but is not residual."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Chain(nn.Module):
    """Its children, one after the other."""

    def __init__(self, **blocks: nn.Module) -> None:
        super().__init__()
        for name, block in blocks.items():
            self.add_module(name, block)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.children():
            x = block(x)
        return x


class Pair(nn.Module):
    """Holds modules of one kind, but is no list of them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = row(4, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


class Scaled(Block):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.act(self.norm(self.conv(x)))


class Network(nn.Module):
    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.body, self.norm, self.fc = body, nn.BatchNorm2d(width), nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.body(self.stem_norm(self.stem(x)))).mean(dim=(2, 3)))


def image(count: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def row(channels: int, *widths: int) -> list[Block]:
    return [Block(before, width) for before, width in zip((channels, *widths), widths, strict=False)]


def found(network: nn.Module) -> list[tuple[str, str]]:
    """The names of blocks and of those that are skippable, without what is before the last dot."""
    stages = probe.stages(network, probe.watch(network, image())[1])
    return [tuple(" ".join(name.rpartition(".")[2] for name in names) for names in stage) for stage in stages]


@pytest.mark.parametrize(
    ("body", "stages"),
    [
        (nn.Sequential(nn.Sequential(*row(4, 8, 8, 8)), nn.Sequential(*row(8, 9, 9))), [("0 1 2", "2"), ("0 1", "1")]),
        (nn.Sequential(*row(4, 8, 8, 8, 9, 9)), [("0 1 2", "2"), ("3 4", "4")]),  # one list of two widths
        (Chain(first=nn.Sequential(*row(4, 9))[0], b1=Block(9, 9), b2=Block(9, 9)), [("first b1 b2", "b2")]),
        (nn.Sequential(Block(4, 9), Unlike(9, 9), Unlike(9, 9), Block(9, 9)), [("0 1 2 3", "3")]),
        (nn.Sequential(Block(4, 9), *(Block(9, 9, gate=0.5) for _ in range(3))), [("0 1 2 3", "2 3")]),
        (nn.Sequential(nn.Conv2d(4, 9, 1), nn.Sequential(*row(9, 9, 9, 9))), [("0 1 2", "2")]),
        (nn.Sequential(Block(4, 9), Unlike(9, 9), Block(9, 9), Unlike(9, 9)), []),
        (nn.Sequential(Scaled(), Scaled(), Block(4, 9)), [("0 1", "1")]),
        (nn.Sequential(Pair(), Block(4, 9)), []),
    ],
)
def test_stages_are_rows_of_residual_blocks_of_one_shape(body: nn.Module, stages: list) -> None:
    assert found(Network(body, 9)) == stages


def test_a_row_of_like_blocks_is_parted_in_four() -> None:
    network = Network(nn.Sequential(nn.Conv2d(4, 9, 1), nn.Sequential(*row(9, *[9] * 10))), 9)
    assert found(network) == [("0 1", "1"), ("2 3 4", "4"), ("5 6", "6"), ("7 8 9", "9")]


def test_norms_follow_the_stage_in_or_before_which_they_run() -> None:
    model = adapt(Network(nn.Sequential(*row(4, 8, 8, 9, 9)), 9), image()).eval()
    twins = {name for name, _ in model.named_modules() if name.endswith("_skip")}
    assert twins == {"body.0.norm_skip", "body.2.norm_skip", "norm_skip"}
    before = model.forward_all(image())
    model.body[2].norm_skip.bias.data += 1
    after = model.forward_all(image())
    changed = {model.name(skip) for skip in before if not torch.equal(before[skip], after[skip])}
    assert changed == {"FT", "TT"}


@torch.no_grad()
def test_depth_on_torchvision_s_resnet_is_that_of_ours() -> None:
    torch.manual_seed(0)
    plain = torchvision.models.resnet50(num_classes=7)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1)
    ours = models.resnet50(num_classes=7).eval()
    models.load_plain(ours, plain.state_dict())
    model = adapt(copy.deepcopy(plain), torch.randn(1, 3, 32, 32)).eval()
    x = torch.randn(2, 3, 32, 32)
    for skip in ((False,) * 4, (True, False, False, True), (True,) * 4):
        assert torch.equal(model(x, skip), ours(x, skip))
        assert model.cost(skip, 32) == ours.cost(skip, 32)


class Caches(Block):
    """Keeps what it made of its weights in evaluation until it trains again, as some attention of timm's does."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.kept: dict = {}

    def train(self, mode: bool = True) -> nn.Module:
        if mode:
            self.kept = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x + self.norm(self.conv(x))
        weight = self.kept.setdefault("weight", self.conv.weight * 1)
        return x + self.norm(torch.conv2d(x, weight, self.conv.bias, padding=1))


@torch.no_grad()
def test_what_modules_keep_of_their_weights_is_not_used_after_a_step() -> None:
    model = adapt(Network(nn.Sequential(Caches(), Caches()), 4), image()).eval()
    model(image(), model.base_net)
    for parameter in model.train().parameters():
        parameter += 0.1
    assert torch.equal(model.eval()(image(), model.base_net), model.extract(model.base_net).train().eval()(image()))


def test_the_network_keeps_its_statistics_while_its_stages_are_found() -> None:
    network = Network(Chain(b1=Block(4, 4), b2=Block(4, 4)), 4)
    before = copy.deepcopy(network.state_dict())
    model = adapt(network, image())
    assert model.training
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_names_that_mean_something_here_are_refused() -> None:
    network = Network(nn.Sequential(*row(4, 8, 8)), 8)
    network.cost = 3
    with pytest.raises(ValueError, match="called as those of networks here: cost"):
        adapt(network, image())
