"""AutoSlim's search by its command, from a file of weights to a list that trains."""

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import methods
import models
import train_adn
from models.slimmable import search
from tests.filled import filled, images
from tools import slim
from utils.data.loading import load_data
from utils.flags import arguments
from utils.flags.data import fill_defaults

SIZES = "--train-crop-size 16 --val-resize-size 16 --val-crop-size 16"
BUDGETS = (0.038, 0.034)
SEARCH = f"{SIZES} --data-path digits --workers 0 --images 6 --batch-size 3 --groups 2 --gmacs 0.034 0.038 -o"


def small(name: str, **settings: object) -> models.ManyNetworks:
    model = models.build(name, num_classes=10, stem="small", **settings)
    model.load_state_dict(filled(model.state_dict()))
    return model.eval()


@pytest.fixture(scope="module")
def us(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's file of a network of a range of widths."""
    path = tmp_path_factory.mktemp("us") / "us.pth"
    arguments = argparse.Namespace(model="us_mobilenet_v1", stem="small", val_crop_size=16)
    torch.save({"model": small("us_mobilenet_v1").state_dict(), "args": arguments}, path)
    return path


@pytest.fixture(scope="module")
def found(us: Path) -> Path:
    assert slim.main([*SEARCH.split(), str(us.with_name("channels.json")), "--weights", str(us)]) == 0
    return us.with_name("channels.json")


def test_each_step_removes_one_group_until_under_each_budget(found: Path) -> None:
    content, model = json.loads(found.read_text()), small("us_mobilenet_v1")
    steps = content["steps"]
    rows = [model.row(1.0), *(model.parse(step["channels"]) for step in steps)]
    for (before, after), step in zip(itertools.pairwise(rows), steps, strict=True):
        (place,) = [at for at, count in enumerate(before) if after[at] != count]
        group = max(8, rows[0][place] // 2)
        assert before[place] - after[place] == min(group, before[place] - model.row(0.25)[place])
        assert step["gmacs"] == model.cost(after, 16).macs / 1e9
    costs = [step["gmacs"] for step in steps]
    assert costs == sorted(set(costs), reverse=True)
    assert [one["budget"] for one in content["lists"]] == list(BUDGETS)
    for one in content["lists"]:
        first = next(number for number, cost in enumerate(costs) if cost <= one["budget"])
        assert tuple(one["channels"]) == rows[first + 1]
        assert (one["gmacs"], one["top1"]) == (costs[first], steps[first]["top1"])
    assert len(steps) == first + 1


def test_a_killed_search_goes_on_to_the_same_list(us: Path, found: Path, monkeypatch, tmp_path: Path) -> None:
    write, written = slim.write_json, []

    def write_and_die(path: Path, content: dict) -> None:
        write(path, content)
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt

    line = [*SEARCH.split(), str(tmp_path / "channels.json"), "--weights", str(us)]
    with monkeypatch.context() as patch:
        patch.setattr(slim, "write_json", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            slim.main(line)
    assert len(json.loads((tmp_path / "channels.json").read_text())["steps"]) == 2
    assert slim.main(line) == 0
    assert json.loads((tmp_path / "channels.json").read_text()) == json.loads(found.read_text())


def test_a_finished_search_gives_other_budgets_their_lists(us: Path, found: Path, tmp_path: Path) -> None:
    (path := tmp_path / "channels.json").write_bytes(found.read_bytes())
    assert slim.main([*SEARCH.split(), str(path), "--weights", str(us), "--gmacs", "0.036"]) == 0
    content, before = json.loads(path.read_text()), json.loads(found.read_text())
    assert content["steps"] == before["steps"]
    assert [one["budget"] for one in content["lists"]] == [0.036]


@torch.no_grad()
def test_what_goes_costs_the_fewest_errors() -> None:
    """By its definition, on ordinary networks with only the channels of a list."""
    model, x, targets = small("us_mobilenet_v1", widths=(0.25, 1.0)), images(8, 16), torch.arange(8) % 3
    row = model.row(1.0)
    errors, loss, smaller = search.next_row(model, row, 1, [(x, targets)])
    known = {}
    for candidate in search.removals(model, row, 1):
        model.calibrate([x], [candidate])
        logits = model.extract(candidate).train()(x)
        wrong = (logits.argmax(1) != targets).sum().item()
        known[candidate] = wrong, torch.nn.functional.cross_entropy(logits, targets).item()
    assert len(known) == len(row)
    assert smaller == min(known, key=known.get)
    assert (errors, loss) == pytest.approx(known[smaller])


@torch.no_grad()
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50"])
def test_linked_layers_shrink_together_and_a_list_builds_the_same_network(name: str) -> None:
    """Also where two layers have as many channels by chance: that does not add a shortcut."""
    model, x = small(f"us_{name}", widths=(0.25, 1.0)), images(2, 16)
    row = (16, *model.row(1.0)[1:])
    candidates = list(search.removals(model, row, 4))
    together = [[at for at, count in enumerate(row) if less[at] != count] for less in candidates]
    if name == "mobilenet_v2":
        assert row[0] == row[1]
        assert [places for places in together if len(places) > 1][:2] == [[3, 5], [7, 9, 11]]
        assert all(len(row) - 1 not in places for places in together), "the last layer is the same at every width"
    row = candidates[-1]
    model.calibrate([x], [row])
    assert model.parse(model.name(row)) == row
    plain = model.extract(row)
    assert torch.equal(model(x, row), plain(x))
    small(f"us_{name}", widths=(0.25, 1.0)).load_statistics(model.statistics())
    alone = models.build(f"autoslim_{name}", num_classes=10, stem="small", channels=[list(row)])
    theirs = alone.eval().extract(1)
    theirs.load_state_dict(plain.state_dict())
    assert torch.equal(theirs(x), plain(x))
    broken = [*row[:3], row[3] + 8, *row[4:]]
    if name == "mobilenet_v2":
        for build in (lambda: models.build(f"autoslim_{name}", channels=[broken]), lambda: model(x, tuple(broken))):
            with pytest.raises(ValueError, match=r"at places? 4"):
                build()


def test_the_lists_train_and_their_checkpoint_brings_them(found: Path, tmp_path: Path) -> None:
    data = f"--data-path digits --workers 0 --batch-size 8 --train-images 16 --val-images 8 {SIZES}"
    train = f"{data} --model autoslim_mobilenet_v1 --stem small --method slimmable --epochs 1 --calibrate 0"
    assert train_adn.main([*train.split(), "--channels", str(found), "--output-dir", str(tmp_path)]) == 0
    lists = [one["channels"] for one in json.loads(found.read_text())["lists"]][::-1]
    model = models.network(models.read_weights(tmp_path / "best.pth"))
    assert model.subnets == (2, 1)
    assert [len(model.extract(subnet).features[-1].body[3].weight) for subnet in (1, 2)] == [row[-1] for row in lists]
    test = f"--test-only --widths all --latency-batch 0 --no-picture {data} --output-dir"
    assert train_adn.main([*test.split(), str(tmp_path / "test"), "--weights", str(tmp_path / "best.pth")]) == 0
    alone = ["--channels", json.dumps(lists[0]), "--output-dir", str(tmp_path / "alone")]
    assert train_adn.main([*train.split(), *alone]) == 0
    again = ["--from-run", str(tmp_path / "run.json"), "--output-dir", str(tmp_path / "again"), "--workers", "0"]
    assert train_adn.main(again) == 0
    assert json.loads((tmp_path / "again" / "run.json").read_text())["args"]["channels"] == lists


def test_the_sample_is_of_images_that_training_left_out(us: Path) -> None:
    args = arguments.parser(methods).parse_args(["--data-path", "digits", "--workers", "0", "--calibrate", "1"])
    fill_defaults(args)
    data = load_data(args)
    taken: list[int] = []

    def note(loader: DataLoader) -> DataLoader:
        taken.extend(index for batch in loader.batch_sampler for index in batch)
        return loader

    sizes = [len(targets) for _, targets in slim.sample(data, args, 40, 1400, note)]
    assert (sizes, len(set(taken))) == ([20, 20], 40)
    assert not set(taken) & {number * len(data.train) // 1400 for number in range(1400)}


def test_mistakes_are_one_line(us: Path, found: Path, tmp_path: Path, mistake: Callable[..., str]) -> None:
    line = [*SEARCH.split(), tmp_path / "channels.json", "--weights", us]
    assert "--gmacs 0.001: from 0.0030 to less than 0.0439 are possible" in mistake(slim.main, *line, "--gmacs", 0.001)
    assert "--gmacs: expected more than 0, not 0" in mistake(slim.main, *line, "--gmacs", 0)
    assert "--images 2000: there are only 1442" in mistake(slim.main, *line, "--images", 2000)
    assert "other seed; move it" in mistake(slim.main, *line, "--seed", 1, "-o", found)
    (tmp_path / "other.json").write_text("{}")
    assert "no file of a search" in mistake(slim.main, *line, "-o", tmp_path / "other.json")
    train = ["--data-path", "digits", "--stem", "small", "--output-dir", tmp_path, "--model"]
    flag = ["autoslim_mobilenet_v1", "--channels"]
    assert "a list of 2 numbers of channels; this network takes 14" in mistake(train_adn.main, *train, *flag, "[8,16]")
    assert "neither a file that" in mistake(train_adn.main, *train, *flag, tmp_path / "other.json")
    assert "No such file" in mistake(train_adn.main, *train, *flag, tmp_path / "none.json")
    assert "has no setting channels" in mistake(train_adn.main, *train, "us_mobilenet_v1", "--channels", found)
