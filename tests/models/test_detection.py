"""Detectors are torchvision's own at full depth, and at any other those with the extracted body."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn, retinanet_resnet50_fpn
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

import models
from models.detection import build

SIZES = {"min_size": 64, "max_size": 96}
IMAGES = [torch.rand(3, 50, 64, generator=torch.Generator().manual_seed(number)) for number in range(2)]
BOXES = torch.tensor([[4.0, 4, 30, 40], [20, 10, 60, 44]])
TARGETS = [{"boxes": BOXES, "labels": torch.tensor([1, 2]), "masks": torch.ones(2, 50, 64, dtype=torch.uint8)}] * 2
PLAIN = {
    "faster_rcnn": fasterrcnn_resnet50_fpn,
    "mask_rcnn": maskrcnn_resnet50_fpn,
    "retinanet": retinanet_resnet50_fpn,
}


def same(one: list[dict], other: list[dict]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


def losses(detector: nn.Module, *asked: object) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return detector.train()(IMAGES, TARGETS, *asked)


@torch.no_grad()
@pytest.mark.parametrize("kind", PLAIN)
def test_at_full_depth_it_is_torchvisions(kind: str) -> None:
    few = {} if kind == "retinanet" else {"box_detections_per_img": 5, "rpn_post_nms_top_n_test": 50}
    theirs = PLAIN[kind](weights=None, weights_backbone=None, num_classes=4, **few, **SIZES)
    ours = build(kind, "resnet50", 4, trained_norms=True, **few, **SIZES)
    state = theirs.state_dict()
    assert list(state) == [name for name in ours.state_dict() if "_skip." not in name]
    ours.load_state_dict(state, strict=False)
    assert same([losses(ours)], [losses(theirs)])
    detections = ours.eval()(IMAGES)
    assert same(detections, theirs.eval()(IMAGES))
    assert same(detections, ours.view()(IMAGES))
    if kind == "faster_rcnn":
        assert len(detections[0]["boxes"])


@torch.no_grad()
def test_at_a_lesser_depth_it_has_the_extracted_body() -> None:
    torch.manual_seed(0)
    network = models.build("resnet18").eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)  # so that the two sets differ
    body = network.extract(network.base_net)
    ours = build("faster_rcnn", network, 4, width=16, **SIZES).eval()
    stages = {f"layer{stage}": str(stage - 1) for stage in range(1, 5)}
    backbone = BackboneWithFPN(body, stages, [64, 128, 256, 512], 16)
    theirs = copy.deepcopy(ours.view(ours.base_net))
    backbone.fpn.load_state_dict(ours.backbone.fpn.state_dict())
    theirs.backbone = backbone.eval()
    expected = theirs(IMAGES)
    assert len(expected[0]["boxes"])
    skip = ours.base_net
    detections = ours(IMAGES, skip=skip)
    for extracted in (ours.extract(skip), copy.deepcopy(ours).view(skip)):
        assert same(extracted(IMAGES), detections)
    for name in expected[0]:
        assert torch.allclose(expected[0][name], detections[0][name], atol=1e-4)  # frozen norms round differently
    assert not same(ours(IMAGES), detections)
    assert same(ours.forward_all(IMAGES, [skip])[skip], detections)
    assert ours.cost(skip, 64).macs < ours.cost(image_size=64).macs
    assert ours.cost(skip, 64).parameters == sum(p.numel() for p in ours.extract(skip).parameters())


def test_frozen_norms_are_torchvisions() -> None:
    body = models.build("resnet18")
    state = body.view().state_dict()
    state |= {name: torch.rand_like(value) for name, value in state.items() if "running_" in name}
    models.load_plain(body, state)
    ours = build("faster_rcnn", body, 4, **SIZES)
    theirs = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d)
    theirs.body.load_state_dict({name: t for name, t in state.items() if not name.startswith("fc.")})
    theirs.fpn.load_state_dict(ours.backbone.fpn.state_dict())
    image = torch.rand(1, 3, 64, 64)
    found, expected = ours.train().view().backbone(image), theirs.train()(image)
    assert all(torch.equal(found[level], expected[level]) for level in expected)


def test_boxes_are_float32_and_activations_are_not_under_autocast() -> None:
    detector = build("faster_rcnn", "resnet18", 4, **SIZES).eval()
    kept: list[torch.dtype] = []
    detector.backbone.body.layer2.register_forward_hook(lambda module, given, found: kept.append(found.dtype))
    seen: list[torch.dtype] = []
    detector.roi_heads.register_forward_pre_hook(lambda heads, given: seen.extend(boxes.dtype for boxes in given[1]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        detections = detector(IMAGES)
        body = detector.view().backbone.body(torch.rand(1, 3, 64, 64))
    assert seen
    assert {*seen, *(found["boxes"].dtype for found in detections)} == {torch.float32}
    assert {stage.dtype for stage in body} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["mobilenet_v2", "swin_t", "convnext_tiny", "regnet_y_400mf", "resnet20"])
def test_both_passes_train_a_body_of_every_family(name: str) -> None:
    detector = build("faster_rcnn", name, 4, trained_norms=True, width=8, **SIZES)
    for skip in (detector.super_net, detector.base_net):
        found, features = detector(IMAGES, TARGETS, skip, return_features=True)
        sum(found.values()).backward()
        assert {level.shape[1] for level in features} == {8}
    wrong = [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not wrong
    assert any("_skip." in name for name, _ in detector.named_parameters())


@torch.no_grad()
def test_trained_norms_are_calibrated_for_each_depth() -> None:
    detector = build("faster_rcnn", "resnet18", 4, trained_norms=True, width=8, **SIZES).eval()
    before = detector(IMAGES, skip=(True, False, True, False))
    assert detector.calibrate([IMAGES, IMAGES]) == 20  # the two of a mandatory block have one name
    after = detector(IMAGES, skip=(True, False, True, False))
    assert not same(before, after)
    assert same(after, detector.extract((True, False, True, False))(IMAGES))
    again = build("faster_rcnn", "resnet18", 4, trained_norms=True, width=8, **SIZES).eval()
    again.load_state_dict(detector.state_dict())
    again.load_statistics(detector.statistics())
    assert same(after, again(IMAGES, skip=(True, False, True, False)))


@pytest.mark.parametrize("name", ["resnet18", "swin_t"])
def test_frozen_norms_have_no_gradients_and_keep_their_statistics(name: str) -> None:
    detector = build("retinanet", name, 4, width=8, **SIZES)
    before = {key: value.clone() for key, value in detector.backbone.body.named_buffers()}
    losses_, features = detector(IMAGES, None, detector.base_net, return_features=True)
    assert losses_ == {}
    sum(level.sum() for level in features).backward()
    norms = [m for m in detector.backbone.body.modules() if "Norm" in type(m).__name__]
    assert norms
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())
    after = dict(detector.backbone.body.named_buffers())
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    kept = build("retinanet", "resnet18", 4, width=8, trained_stages=1, **SIZES).backbone.body
    assert {n.partition(".")[0] for n, p in kept.named_parameters() if p.requires_grad} == {"layer4"}


def test_what_cannot_be_a_body_says_why() -> None:
    for name, reason in {
        "vit_b_32": "takes images of 224 pixels alone",
        "s_mobilenet_v2": "no network of many depths",
    }.items():
        with pytest.raises(ValueError, match=reason), torch.device("meta"):
            build("faster_rcnn", name, 4)
    with pytest.raises(ValueError, match="unknown detector 'yolo'; there are: faster_rcnn, mask_rcnn, retinanet"):
        build("yolo", "resnet18", 4)
    detector = build("retinanet", "resnet18", 4, width=8, **SIZES)
    with pytest.raises(ValueError, match="list of 4 bools"):
        detector.eval()(IMAGES, skip=(True,))


@torch.no_grad()
def test_a_timm_network_is_a_body() -> None:
    pytest.importorskip("timm")
    detector = build("faster_rcnn", "timm:resnet18", 4, width=8, **SIZES)
    ours = build("faster_rcnn", "resnet18", 4, width=8, **SIZES)
    state = ours.state_dict()  # timm's shortcuts have second norms too
    state |= {name: state[name.replace("_skip", "")] for name in detector.state_dict() if name not in state}
    detector.load_state_dict(state)
    for skip in (ours.super_net, ours.base_net):
        assert same(detector.eval()(IMAGES, skip=skip), ours.eval()(IMAGES, skip=skip))
        assert same(detector.extract(skip)(IMAGES), ours(IMAGES, skip=skip))
    detector.train()(IMAGES, TARGETS, detector.base_net)
    state = detector.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
