"""Exact accuracy: of one process and of several, of one sub-network and of all at once."""

import json
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import models
from tests.casts import Casts
from tests.filled import filled
from tests.launch import together
from utils.data.loading import Batch
from utils.evaluate.accuracy import Result, evaluate, logits_of, running

BF16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)


def collate(items):
    images, targets = zip(*items, strict=True)
    return Batch(torch.stack(images), torch.stack(targets), [])


@pytest.fixture(scope="module")
def model():
    model = models.resnet18(num_classes=10)
    model.load_state_dict(filled(model.state_dict()))
    return model


def loader(count: int, classes: int, batch_size: int = 8, **options):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 32, 32, generator=generator)
    targets = torch.randint(classes, (count,), generator=generator)
    return DataLoader(TensorDataset(images, targets), batch_size, collate_fn=collate, **options)


def test_counts_are_those_of_a_plain_loop(model):
    data = loader(21, 10)
    result = evaluate(model, data, [model.base_net], iter)[model.base_net]
    right1 = right5 = loss = 0
    model.eval()
    with torch.no_grad():
        for images, targets, _ in data:
            logits = model(images, model.base_net)
            order = logits.argsort(dim=1, descending=True)
            right1 += sum(int(row[0] == target) for row, target in zip(order, targets, strict=True))
            right5 += sum(int(target in row[:5]) for row, target in zip(order, targets, strict=True))
            loss -= sum(float(row.double().log_softmax(0)[t]) for row, t in zip(logits, targets, strict=True))
    assert (result.images, result.correct1, result.correct5) == (21, right1, right5)
    assert result.loss == pytest.approx(loss / 21, rel=1e-12)
    assert str(result) == f"Acc@1 {100 * right1 / 21:.3f} Acc@5 {100 * right5 / 21:.3f}"


def test_all_at_once_equals_one_by_one_image_for_image(model):
    data = loader(40, 10, batch_size=20)
    together = evaluate(model, data, model.subnets, iter)
    one_by_one = {skip: evaluate(model, data, [skip], iter)[skip] for skip in model.subnets}
    assert together == one_by_one  # the losses too, to the last bit: so every image's logits are the same
    assert len({result.loss for result in together.values()}) == 16


def test_the_loop_never_waits_for_the_device_and_casts_each_weight_once(model):
    def on_device(loader):
        batches = list(loader)
        with operators:  # until the last batch is done
            yield from batches

    operators = Casts(model)
    evaluate(model, loader(24, 10), [model.super_net, model.base_net], on_device, BF16)
    assert operators.waits == []
    assert set(operators.of_weights.values()) == {1}
    assert operators.of_weights


def test_logits_are_float32_whatever_the_precision_inside(model):
    images = next(iter(loader(2, 10))).images
    with running(model, BF16):
        for subnets in ([model.base_net], model.subnets[:2]):
            assert {logits.dtype for logits in logits_of(model, images, subnets)} == {torch.float32}


def test_mixed_precision_makes_no_two_classes_equally_likely():
    model = models.resnet20(num_classes=1000)
    model.load_state_dict(filled(model.state_dict()))
    images = next(iter(loader(8, 10))).images
    with running(model, BF16):
        (logits,) = logits_of(model, images, [model.super_net])
    best = logits.topk(6, dim=1).values
    assert all(len(set(row)) == 6 for row in best.tolist())


def test_fewer_than_five_classes_have_no_wrong_top5():
    model = models.resnet18(num_classes=3)
    result = evaluate(model, loader(7, 3), [model.super_net], iter)[model.super_net]
    assert result.top5 == 100


def test_every_module_is_again_in_the_mode_it_was_in(model):
    model.train()
    model.bn1.eval()
    modes = [module.training for module in model.modules()]
    evaluate(model, loader(4, 10), [model.super_net], iter)
    assert [module.training for module in model.modules()] == modes
    assert True in modes
    assert False in modes


def test_an_image_lost_on_the_way_is_an_error_not_a_figure(model):
    with pytest.raises(RuntimeError, match="evaluated 8 images, expected 9"):
        evaluate(model, loader(9, 10, drop_last=True), [model.super_net], iter)


def test_nothing_evaluated_is_no_division_by_zero():
    assert Result(0, 0, 0, 0.0).top1 == 0


def test_shares_that_are_empty_or_hold_nothing_but_a_corrupt_image(tmp_path):
    """Three processes, two images, of which one cannot be read."""
    done = together("tests/evaluate/accuracy_worker.py", tmp_path, processes=3)
    assert done.returncode == 0, done.stderr
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert [report["own"] for report in reports] == [1, 1, 0]
    assert all(report == {**reports[0], "own": report["own"]} for report in reports)
    assert set(reports[0]["results"]) == {"FFF", "FFT", "FTF"}
    for result in reports[0]["results"].values():
        assert result["images"] == 1
        assert result["corrupt"] == ["bad.jpg (no image)"]
    assert "cannot read bad.jpg (no image)" in reports[0]["refusal"]
    assert reports[0]["training"] is True
