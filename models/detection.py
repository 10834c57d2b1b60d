"""torchvision's detectors on networks of many depths: Faster R-CNN, Mask R-CNN and RetinaNet on a feature pyramid.

    detector = models.detection.build("faster_rcnn", "resnet50", num_classes=91)
    losses = detector(images, targets, skip)                # in training
    detections = detector.eval()(images, skip=skip)

The forward is torchvision's. A detector is put behind `Views`: of its modules the backbone alone has `at(skip)`, which
gives the chain of blocks that runs at this depth. Names of tensors are torchvision's too, with those of second norms
beside, so its detectors' weights are the super-net's.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from .adaptive import AdaptiveDepth
from .registry import build as build_network
from .selection import BATCH_NORM, NORMS, noting, with_children
from .skip import ByStage, Skip
from .subnet import Cost, ManyNetworks, cost
from .views import Views

SIDE = 128  # pixels of the image by which the stages' strides and channels are found
RATIOS = (0.5, 1.0, 2.0)


class Backbone(nn.Module):
    """A network's stages, the last one of each resolution, and the pyramid on them."""

    def __init__(self, body: ManyNetworks, taken: Sequence[int], channels: Sequence[int], extra: nn.Module, width: int):
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork([channels[stage] for stage in taken], width, extra_blocks=extra)
        self.taken, self.out_channels = taken, width

    def at(self, skip: Skip) -> "Backbone":
        return with_children(self, {**self._modules, "body": self.body.trunk(skip)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Of what `at` gives; the body by itself is no chain. In float32, which anchors and boxes take over."""
        stages = self.body(x)
        levels = self.fpn(OrderedDict((str(level), stages[stage]) for level, stage in enumerate(self.taken)))
        return {name: _at_least_float32(level) for name, level in levels.items()}


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class ExactBoxes(BoxCoder):
    """Boxes are decoded in float32 under autocast too: in 16 bits, large coordinates are pixels apart."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        return super().decode_single(_at_least_float32(rel_codes), boxes)


class FrozenNorm(FrozenBatchNorm2d):
    """In its input's precision: torchvision's gives float32, and all behind it would keep that for its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


class Detector(ByStage, Views):
    """Put before a detector of torchvision's with a `Backbone`."""

    @property
    def num_skippable_stages(self) -> int:
        return self.backbone.body.num_skippable_stages

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]] | None = None,
        skip: Sequence[bool] | None = None,
        return_features: bool = False,
    ) -> Any:
        """What torchvision's detector gives, at a depth (None: all of it): losses in training, else detections.

        If asked for, also what the pyramid gave, level by level; in training without targets that alone is computed.
        """
        view = self._view(self.checked(skip))
        if not return_features:
            return view.run(images, targets)
        if self.training and targets is None:
            pixels, _ = view.network.transform(list(images))
            return {}, list(view.network.backbone(pixels.tensors).values())
        network, noted = noting(view.network, ["backbone"])
        return network(images, targets), list(noted[0].values())

    def images_for(self, images: Sequence[Tensor], subnet: Any = None) -> Sequence[Tensor]:
        """A list of images is a batch of various sizes, not one image in several."""
        return images

    def forward_all(self, images: Sequence[Tensor], subnets: Sequence[Any] | None = None) -> dict[Skip, Any]:
        return {skip: self(images, skip=skip) for skip in (self.subnets if subnets is None else subnets)}

    def cost(self, subnet: Any = None, image_size: int | None = None) -> Cost:
        """The backbone's multiply-accumulates, since those of heads depend on what is seen; all parameters."""
        view = self.view(subnet)
        macs = cost(view.backbone, image_size or 224).macs
        return Cost(macs, sum(parameter.numel() for parameter in view.parameters()))


class AdaptiveFasterRCNN(Detector, FasterRCNN):
    pass


class AdaptiveMaskRCNN(Detector, MaskRCNN):
    pass


class AdaptiveRetinaNet(Detector, RetinaNet):
    pass


KINDS = {"faster_rcnn": AdaptiveFasterRCNN, "mask_rcnn": AdaptiveMaskRCNN, "retinanet": AdaptiveRetinaNet}


def build(
    kind: str,
    body: ManyNetworks | str,
    num_classes: int,
    *,
    trained_norms: bool = False,
    trained_stages: int | None = None,
    width: int = 256,
    anchor_scale: float | None = None,
    **settings: Any,
) -> Detector:
    """A detector of `KINDS`; as in torchvision, its classes count the background.

    `body`: a network of many depths or the name of one, which becomes the detector's: what is behind its stages goes.
    Its norms, both sets, are trained or, as torchvision does it, frozen with their statistics; so is what comes before
    its last `trained_stages` stages (None: nothing is). `width`: channels of the pyramid, from which the heads' follow.
    `anchor_scale`: an anchor's side in strides of its level (None: 8, RetinaNet 4, as torchvision's). Other settings
    are those of torchvision's class.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown detector {kind!r}; there are: {', '.join(KINDS)}")
    if isinstance(body, str):
        body = build_network(body)
    strides, channels = _become_body(body)
    _freeze(body, trained_norms, trained_stages)
    taken = [stage for stage, stride in enumerate(strides) if stride not in strides[stage + 1 :]]
    if kind == "retinanet":
        taken, extra, sides, thirds = taken[-3:], LastLevelP6P7(width, width), 4, (0, 1 / 3, 2 / 3)
        more = [strides[-1] * 2, strides[-1] * 4]
    else:
        extra, sides, thirds, more = LastLevelMaxPool(), 8, (0,), [strides[-1] * 2]
    backbone = Backbone(body, taken, channels, extra, width)
    sides = [stride * (anchor_scale or sides) for stride in [*(strides[stage] for stage in taken), *more]]
    anchors = AnchorGenerator(tuple(tuple(int(side * 2**t) for t in thirds) for side in sides), (RATIOS,) * len(sides))
    heads = _heads(kind, width, [str(level) for level in range(len(taken))], num_classes, anchors)
    detector = KINDS[kind](backbone, **heads, **settings)
    for module in detector.modules():
        if hasattr(module, "box_coder"):
            module.box_coder.__class__ = ExactBoxes
    return detector


def _heads(kind: str, width: int, levels: list[str], num_classes: int, anchors: AnchorGenerator) -> dict[str, Any]:
    """torchvision's own, in proportion to the pyramid's width."""
    if kind == "retinanet":
        return {"num_classes": num_classes, "anchor_generator": anchors}
    heads = {
        "rpn_anchor_generator": anchors,
        "box_roi_pool": MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        "box_head": TwoMLPHead(width * 7**2, 4 * width),
        "box_predictor": FastRCNNPredictor(4 * width, num_classes),
    }
    if kind == "mask_rcnn":
        heads["mask_roi_pool"] = MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2)
        heads["mask_head"] = MaskRCNNHeads(width, (width,) * 4, dilation=1)
        heads["mask_predictor"] = MaskRCNNPredictor(width, width, num_classes)
    return heads


def _become_body(network: ManyNetworks) -> tuple[list[int], list[int]]:
    """Leave of a network only its stages; their strides and channels. A ValueError says why that cannot be."""
    refused = f"{type(network).__name__} cannot be a detector's body"
    if not isinstance(network, ByStage):
        raise ValueError(f"{refused}: it is no network of many depths")
    if network.size() is not None:
        raise ValueError(f"{refused}: it takes images of {network.size()} pixels alone, a detector's have any size")
    network.forget_statistics()
    if hasattr(network, "reset_classifier"):  # timm's, whose forward runs to its end
        network.reset_classifier(0)
    training, ran = network.training, set()
    try:
        with torch.no_grad(), contextlib.ExitStack() as hooks:
            for name, module in network.named_modules():
                hooks.enter_context(module.register_forward_hook(lambda *_, name=name: ran.add(name)))
            network.eval().trunk(network.base_net)(torch.zeros(1, 3, SIDE, SIDE))
            features = network.trunk()(torch.zeros(1, 3, SIDE, SIDE))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"{refused}: of {SIDE} pixels it says {' '.join(str(error).split())[:160]}") from None
    _drop_what_never_ran(network, ran)
    network.train(training)._select()
    strides = [SIDE // feature.shape[-1] for feature in features]
    if any(feature.shape[-2:] != (SIDE // s, SIDE // s) for feature, s in zip(features, strides, strict=True)):
        raise ValueError(f"{refused}: its stages' outputs are no maps of the image")
    if len(set(strides)) < 2:
        raise ValueError(f"{refused}: its stages have one resolution, a pyramid takes several")
    return strides, [feature.shape[1] for feature in features]


def _drop_what_never_ran(module: nn.Module, ran: set[str], name: str = "") -> None:
    """The parts of what ran stay: a module may use their tensors without calling them."""
    for key, child in list(module.named_children()):
        full = f"{name}.{key}".lstrip(".")
        if full in ran:
            continue
        if any(other.startswith(f"{full}.") for other in ran):
            _drop_what_never_ran(child, ran, full)
        else:
            del module._modules[key]


def _freeze(body: ManyNetworks, trained_norms: bool, trained_stages: int | None) -> None:
    if trained_stages is not None:
        if not isinstance(body, AdaptiveDepth):
            raise ValueError("trained_stages: networks of timm are trained whole")
        body.requires_grad_(False)
        for path in body._by_flag()[: body.num_skippable_stages][::-1][:trained_stages]:
            for module in path:
                module.requires_grad_(True)
    if trained_norms:
        return
    for module in list(body.modules()):
        for name, norm in list(module.named_children()):
            if isinstance(norm, BATCH_NORM):
                setattr(module, name, _frozen(norm))
            elif isinstance(norm, NORMS):
                norm.requires_grad_(False)
    body._select()


def _frozen(norm: nn.Module) -> nn.Module:
    if norm._modules:  # timm's, with an activation in it
        from timm.layers import freeze_batch_norm_2d

        return freeze_batch_norm_2d(norm)
    frozen = FrozenNorm(norm.num_features, norm.eps)
    frozen.load_state_dict(norm.state_dict())
    return frozen
