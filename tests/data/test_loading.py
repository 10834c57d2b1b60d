"""From `--data-path` to batches, with real files, real workers and real damage."""

import argparse
import shutil
from itertools import chain

import numpy as np
import pytest
import torch

import methods
from sampler import TrainBatches
from tests.pictures import bad_images, image_folder
from utils.data.loading import Batch, Corrupt, Data, eval_loader, load_data, train_loader
from utils.errors import UserError
from utils.flags.arguments import parser
from utils.flags.data import fill_defaults


def arguments(path, *flags: str, test_only: bool = False, seed: int = 0) -> argparse.Namespace:
    sizes = ["--train-crop-size", "24", "--val-resize-size", "28", "--val-crop-size", "24"]
    args = parser(methods).parse_args(["--data-path", str(path), *sizes, "--workers", "0", *flags])
    args.batch_size, args.test_only, args.seed = 4, test_only, seed
    fill_defaults(args)
    return args


def batches(data: Data, args: argparse.Namespace, epoch: int = 0, start: int = 0) -> list[Batch]:
    order = TrainBatches(len(data.train), args.batch_size, seed=args.seed)
    order.set_epoch(epoch, start)
    return list(train_loader(data, args, order))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data") / "pets", train=7, val=5)


@pytest.fixture
def own_folder(tmp_path):
    return image_folder(tmp_path / "pets", train=3, val=3)


AUGMENTED = ("--auto-augment", "ta_wide", "--random-erase", "0.5")


def test_a_folder_becomes_batches_of_bytes(folder):
    args = arguments(folder)
    data = load_data(args)
    assert (data.classes, data.name, len(data.train), len(data.val)) == (["cat", "dog"], "pets", 14, 10)
    found = batches(data, args)
    assert [len(batch.images) for batch in found] == [4, 4, 4, 4]
    for batch in [*found, *eval_loader(data, args)]:
        assert (batch.images.dtype, batch.images.shape[1:]) == (torch.uint8, (3, 24, 24))
        assert batch.images.is_contiguous()
        assert batch.targets.dtype == torch.int64
        assert batch.corrupt == []
    assert torch.cat([batch.targets for batch in found])[:14].bincount().tolist() == [7, 7]


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_evaluation_sees_each_image_exactly_once(processes):
    for size in range(60):
        data, args = Data(None, range(size), [], ""), arguments("digits")
        loaders = [eval_loader(data, args, rank, processes) for rank in range(processes)]
        shares = [list(chain.from_iterable(loader.batch_sampler)) for loader in loaders]
        assert sorted(chain.from_iterable(shares)) == list(range(size))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_test_only_does_without_training_data(own_folder):
    (own_folder / "train").rename(own_folder / "elsewhere")
    data = load_data(arguments(own_folder, test_only=True))
    assert data.train is None
    assert data.classes == ["cat", "dog"]


@pytest.mark.parametrize("decode", ["tensor", "pil"])
def test_what_is_seen_depends_on_seed_and_epoch_but_not_on_workers(folder, decode):
    def seen(workers: int, seed: int = 0, epoch: int = 2):
        args = arguments(folder, "--decode", decode, *AUGMENTED, "--workers", str(workers), seed=seed)
        return batches(load_data(args), args, epoch)

    expected = seen(0)
    for workers in (1, 3):
        for ours_, theirs in zip(expected, seen(workers), strict=True):
            assert torch.equal(ours_.images, theirs.images)
            assert torch.equal(ours_.targets, theirs.targets)
    for other in (seen(0, seed=1), seen(0, epoch=3)):
        assert not torch.equal(expected[0].images, other[0].images)


def test_an_interrupted_epoch_goes_on_with_the_same_images(folder):
    args = arguments(folder, *AUGMENTED)
    data = load_data(args)
    whole, rest = batches(data, args, epoch=1), batches(data, args, epoch=1, start=8)
    assert len(rest) == len(whole) - 2
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[2:], rest, strict=True))


def test_each_look_at_an_image_is_another_and_the_generator_of_others_rests(folder):
    data = load_data(arguments(folder, *AUGMENTED))
    state = torch.get_rng_state()
    looks = {key: data.train[key][0] for key in [(0, 3, 0), (1, 3, 0), (0, 3, 1)]}
    assert torch.equal(looks[0, 3, 0], data.train[0, 3, 0][0])
    assert not any(torch.equal(looks[0, 3, 0], looks[key]) for key in [(1, 3, 0), (0, 3, 1)])
    list(eval_loader(data, arguments(folder)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_corrupt_images_are_named_left_out_or_replaced(own_folder, workers):
    bad = bad_images(own_folder / "bad")
    for part in ("train", "val"):
        for name, path in bad.items():
            (own_folder / part / "dog" / f"{name}.JPEG").write_bytes(path.read_bytes())
    for choice in ("error", "skip"):
        args = arguments(own_folder, "--on-corrupt", choice, "--workers", workers)
        data = load_data(args)
        shown = batches(data, args)
        names = sorted({line.rsplit("/", 1)[1].split(" (")[0] for batch in shown for line in batch.corrupt})
        assert names == sorted(path.name for path in bad.values())
        missing = 0 if choice == "skip" else sum(len(batch.corrupt) for batch in shown)
        assert sum(len(batch.images) for batch in shown) == 12 - missing
        evaluated = list(eval_loader(data, args))
        assert sum(len(batch.images) for batch in evaluated) == 6
        assert sum(len(batch.corrupt) for batch in evaluated) == len(bad)


def test_a_file_that_vanishes_is_corrupt_and_no_readable_image_at_all_is_an_empty_batch(own_folder):
    args = arguments(own_folder, "--on-corrupt", "skip")
    data = load_data(args)
    for path in (own_folder / "train").rglob("*.JPEG"):
        path.unlink()
    item = data.train[0]
    assert isinstance(item, Corrupt)
    assert "No such file" in str(item)
    for batch in batches(data, args):
        assert (len(batch.images), len(batch.targets)) == (0, 0)
        assert batch.corrupt


def refusal(path, *flags: str, **kw) -> str:
    with pytest.raises(UserError) as caught:
        load_data(arguments(path, *flags, **kw))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folders_that_cannot_be_used_are_named(own_folder, tmp_path):
    assert "/nowhere" in refusal("/nowhere")
    (own_folder / "val").rename(own_folder / "validation")
    assert f"{own_folder}/val: no such folder" in refusal(own_folder)
    (own_folder / "validation").rename(own_folder / "val")
    (own_folder / "train" / "dog").rename(own_folder / "train" / "wolf")
    message = refusal(own_folder)
    assert "different classes" in message
    assert "only in train: wolf; only in val: dog" in message
    (tmp_path / "empty" / "val").mkdir(parents=True)
    assert "no class folders" in refusal(tmp_path / "empty")


def test_a_share_of_the_images_is_spread_over_all_of_them(folder):
    data = load_data(arguments(folder, "--train-images", "6", "--val-images", "4"))
    assert (data.train.targets.tolist(), data.val.targets.tolist()) == ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1])
    digits = load_data(arguments("digits", "--train-images", "50", "--val-images", "20", seed=1))
    assert (len(digits.train), len(digits.val)) == (50, 20)
    everything, few = (load_data(arguments("digits", *flags)).val for flags in ((), ("--val-images", "20")))
    assert all(torch.equal(few[number][0], everything[number * len(everything) // 20][0]) for number in range(20))
    assert "--train-images 15: there are only 14" in refusal(folder, "--train-images", "15")


def test_a_share_of_each_class_validates_always_the_same_and_never_trains(own_folder, tmp_path):
    """Of 9 cats and 3 dogs."""
    for number in range(6):
        shutil.copy(own_folder / "train" / "cat" / "0.JPEG", own_folder / "train" / "cat" / f"more{number}.JPEG")
    shutil.rmtree(own_folder / "val")
    assert f"{own_folder}/val: no such folder" in refusal(own_folder)
    wish = ("--val-split", "0.25")
    data = load_data(arguments(own_folder, *wish))
    files = [{images.path(number) for number in range(len(images))} for images in data[:2]]
    assert files[0] | files[1] == {str(path) for path in (own_folder / "train").rglob("*.JPEG")}
    assert not files[0] & files[1]
    assert (data.train.targets.tolist(), data.val.targets.tolist()) == ([0] * 7 + [1] * 2, [0, 0, 1])
    assert [data.val.name(number) for number in range(3)] == ["cat/2.JPEG", "cat/more3.JPEG", "dog/1.JPEG"]
    for batch in [*batches(data, arguments(own_folder, *wish)), *eval_loader(data, arguments(own_folder, *wish))]:
        assert batch.corrupt == []
    again = load_data(arguments(own_folder, *wish, seed=1, test_only=True))
    assert again.train is None
    assert np.array_equal(again.val.rows, data.val.rows)
    for name in ("0", "1"):
        (own_folder / "train" / "dog" / f"{name}.JPEG").unlink()
    assert "class dog has a single image" in refusal(own_folder, *wish)


def test_without_a_data_path_the_message_says_what_to_give():
    args = arguments("")
    args.data_path = None
    with pytest.raises(UserError, match=r"--data-path is missing.*digits"):
        load_data(args)


def test_the_files_of_a_folder_are_rows_of_arrays(folder):
    """A Python object per file would be copied, by its reference count alone, into every worker."""
    for images in load_data(arguments(folder))[:2]:
        assert (type(images.rows), images.rows.dtype.kind) == (np.ndarray, "S")
        assert (type(images.targets), images.targets.dtype) == (np.ndarray, np.int32)
        assert not [name for name, value in vars(images).items() if isinstance(value, (list, tuple, dict, set))]
