"""What the blocks of a stage look at, in the super-net and in the base-net; and what they do, in numbers.

    python -m tools.activation_maps --weights checkpoint.pth --images FOLDER --stage 3

The picture shows a Grad-CAM (Selvaraju et al., 2017) of each block for the class that the network takes an image for: a
row for each image and network, a column for each block. The numbers are means over all images: how much a block changes
what runs through it, |F(h)| / |h|, and the cosine between the two networks' outputs of each stage. The method claims
that skippable blocks only refine: that they change little, and that without them a stage's output is much the same.
"""

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import models
import presets
from deploy.command import exit_code
from models.skip import Skip
from utils.data.loading import collate
from utils.errors import UserError
from utils.evaluate.picture import activation_maps
from utils.evaluate.predict import images_at
from utils.files import write_json
from utils.flags.parsing import COUNT


def main(argv: Sequence[str]) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tools.activation_maps", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--weights", required=True, metavar="FILE|NAME", help="of a network with adaptive depth")
    add("--model", help="its name, where the file does not say it")
    add("--images", required=True, metavar="PATH", help="an image, or a folder of them")
    add("--stage", type=COUNT, default=3, help="whose blocks the picture shows, counted from 1 (default: %(default)s)")
    add("--shown", type=COUNT, default=4, metavar="N", help="images in the picture (default: %(default)s)")
    add("--most", type=COUNT, default=256, metavar="N", help="images in the numbers (default: %(default)s)")
    add("-o", "--output-dir", type=Path, default=Path("."), metavar="DIR", help="for maps.png and maps.json")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    return exit_code("tools.activation_maps", lambda: report(args), models.WeightsError)


def report(args: argparse.Namespace) -> None:
    saved = models.read_weights(models.zoo.weights_file(args.weights, model=args.model), args.weights, args.model)
    model = models.network(saved, args.model)
    if not isinstance(model, models.AdaptiveDepth):
        raise UserError(f"{saved.source}: its network has no stages of mandatory and skippable blocks")
    if args.stage > model.num_skippable_stages:
        raise UserError(f"--stage {args.stage}: this network has {model.num_skippable_stages}")
    crop, resize = saved.settings.get("val_crop_size") or 224, saved.settings.get("val_resize_size") or 256
    transform = presets.eval_transform(resize, crop, saved.settings.get("interpolation") or "bilinear")
    images = images_at(Path(args.images), saved.classes or [], transform).val
    batches = [batch.images for batch in DataLoader(images, batch_size=16, collate_fn=collate)]
    pixels = torch.cat([batch for batch in batches if len(batch)])[: args.most]
    floats = presets.ToFloat(*presets.COLOURS[saved.settings.get("normalize") or "imagenet"])(pixels).split(16)
    numbers = {"images": len(pixels), "blocks": changes(model, floats), "cosine": cosines(model, floats)}
    write_json(args.output_dir / "maps.json", numbers)
    print(json.dumps(numbers, indent=1))
    shown = torch.cat(floats)[: args.shown]
    nets = {"super-net": model.super_net, "base-net": model.base_net}
    maps = {net: grad_cams(model, skip, args.stage, shown).numpy() for net, skip in nets.items()}
    blocks = len(maps["super-net"])
    kinds = ["mandatory"] * -(-blocks // 2) + ["skippable"] * (blocks // 2)
    titles = [f"{number}, {kind}" for number, kind in enumerate(kinds, start=1)]
    backgrounds = pixels[: args.shown].permute(0, 2, 3, 1).numpy()
    if activation_maps(backgrounds, maps, titles, f"stage {args.stage}", args.output_dir / "maps.png"):
        print(f"written: {args.output_dir / 'maps.png'}, {args.output_dir / 'maps.json'}")


@contextlib.contextmanager
def watched(blocks: Sequence[nn.Module]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """A list that grows while these modules run: of each what comes into it, and out of it."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(block: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.append((inputs[0], output))

    hooks = [block.register_forward_hook(note) for block in blocks]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def changes(model: models.AdaptiveDepth, batches: Sequence[Tensor]) -> dict[str, dict[str, list[float | None]]]:
    """By network and stage, of each block the mean of |F(h)| / |h|; None where a block changes the shape."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for net, skip in (("super-net", model.super_net), ("base-net", model.base_net)):
        found[net] = {}
        for stage, blocks in enumerate(model.blocks(skip), start=1):
            changed: list[list[Tensor]] = [[] for _ in blocks]
            for images in batches:
                with watched(blocks) as seen:
                    model(images, skip)
                for ratios, (h, output) in zip(changed, seen, strict=True):
                    if h.shape == output.shape:
                        ratios.append((output - h).flatten(1).norm(dim=1) / h.flatten(1).norm(dim=1))
            found[net][str(stage)] = [round(torch.cat(r).mean().item(), 4) if r else None for r in changed]
    return found


@torch.no_grad()
def cosines(model: models.AdaptiveDepth, batches: Sequence[Tensor]) -> dict[str, float]:
    """Of each stage, the mean cosine between the super-net's and the base-net's output for an image."""
    found = []
    for images in batches:
        ours, theirs = (model(images, skip, return_features=True)[1] for skip in (model.super_net, model.base_net))
        pairs = zip(ours, theirs, strict=True)
        found.append(torch.stack([F.cosine_similarity(a.flatten(1), b.flatten(1)) for a, b in pairs]))
    means = torch.cat(found, dim=1).mean(dim=1).tolist()
    return {str(number): round(mean, 4) for number, mean in enumerate(means, start=1)}


def grad_cams(model: models.AdaptiveDepth, skip: Skip, stage: int, images: Tensor) -> Tensor:
    """Blocks x images x height x width, in [0, 1]: where a block's output speaks for the class that comes out."""
    with torch.enable_grad(), watched(model.blocks(skip)[stage - 1]) as seen:
        logits = model(images, skip)
    outputs = [output for _, output in seen]
    gradients = torch.autograd.grad(logits.max(dim=1).values.sum(), outputs)
    cams = []
    for output, gradient in zip(outputs, gradients, strict=True):
        features, slopes = model._feature_map(output.detach()), model._feature_map(gradient)
        cam = (features * slopes.mean(dim=(2, 3), keepdim=True)).sum(dim=1, keepdim=True).relu()
        cam = F.interpolate(cam, size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        cams.append(cam / cam.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12))
    return torch.stack(cams)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
