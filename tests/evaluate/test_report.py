"""`--test-only` as a user meets it: lines, table, files, picture, budgets, and what it says of mistakes."""

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace

import PIL.Image
import pytest
import torch

import models
import models.zoo
import train_adn
from tests.runs import metrics
from utils.evaluate import picture, table
from utils.evaluate.table import Row


@pytest.fixture
def run(digits_run, tmp_path, capsys):
    """The command on the digits: (exit code, stdout, stderr)."""

    def run(*flags, weights=digits_run / "checkpoint.pth"):
        common = f"--test-only --device cpu --data-path digits --batch-size 64 --output-dir {tmp_path}"
        common += "" if "--model" in flags else " --model resnet20"
        code = train_adn.main([*common.split(), *(["--weights", str(weights)] if weights else []), *flags])
        return code, *capsys.readouterr()

    return run


def test_one_sub_network_gives_one_line_as_the_reference_does(run, tmp_path):
    code, out, _ = run("--skip-cfg", "True", "False", "True")
    assert code == 0
    opening, line = out.splitlines()
    assert re.fullmatch(r"Test: TFT  355 images  loss \d+\.\d{4}  Acc@1 \d+\.\d{3} Acc@5 \d+\.\d{3}", line)
    assert "model resnet20" in opening
    assert "precision fp32, memory_format channels_last" in opening
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_as_good_as_its_run_said(run, digits_run):
    """It brings the sizes of the images it was trained for, too."""
    _, out, _ = run("--skip-cfg", "super", "base", "--latency-batch", "0", "--no-picture")
    said = metrics(digits_run)[-1]
    found = [float(top1) for top1 in re.findall(r"^Test: .* Acc@1 (\S+)", out, flags=re.MULTILINE)]
    assert found == pytest.approx([said["test_acc1_super"], said["test_acc1_base"]], abs=1e-3)
    assert min(found) > 85


def test_all_gives_the_table_by_cost_and_its_files(run, tmp_path):
    code, out, _ = run("--skip-cfg", "all", "--no-picture")
    assert code == 0
    rows, facts = table.read(tmp_path / "subnets.json")
    model = models.resnet20(num_classes=10)
    assert sorted(row.name for row in rows) == sorted(model.name(skip) for skip in model.subnets)
    assert [row.gmacs for row in rows] == sorted(row.gmacs for row in rows)
    assert all(row.latency_ms > 0 for row in rows)
    assert facts["model"] == "resnet20"
    assert facts["images"] == 355
    assert facts["versions"]["torch"] == torch.__version__
    for row in rows:
        cost = model.cost(model.parse(row.name), 16)
        assert (row.gmacs, row.params_m) == (cost.macs / 1e9, cost.parameters / 1e6)
        assert f"Acc@1 {row.top1:.3f} Acc@5 {row.top5:.3f}" in re.search(rf"Test: {row.name} .*", out)[0]
    assert len((tmp_path / "subnets.csv").read_text().splitlines()) == 9
    assert not (tmp_path / "subnets.png").exists()


def test_a_budget_without_a_word_chooses_among_all(run):
    code, out, _ = run("--budget-gmacs", "0.009", "--budget-params", "0.2", "--latency-batch", "0", "--no-picture")
    assert code == 0
    assert "Testing 8 sub-networks" in out
    chosen = re.search(r"best within 0\.009 GMACs and 0\.2 M parameters: (\w+)", out)[1]
    accuracy = {name: float(top1) for name, top1 in re.findall(r"^Test: (\w+) .* Acc@1 (\S+)", out, flags=re.MULTILINE)}
    costs = re.findall(r"^[* ] ([TF]{3}) +(\S+) +(\S+) ", out, flags=re.MULTILINE)
    assert len(costs) == 8
    fitting = [name for name, gmacs, params in costs if float(gmacs) <= 0.009 and float(params) <= 0.2]
    assert 1 < len(fitting) < 8
    assert accuracy[chosen] == max(accuracy[name] for name in fitting)


def test_the_printed_command_measures_the_same_again(run, digits_run, tmp_path):
    """Also of a file that --resume auto has found, in a folder whose name needs quotes."""
    folder = tmp_path / "my run"
    folder.mkdir()
    shutil.copy(digits_run / "checkpoint.pth", folder)
    flags = ["--resume", "auto", "--output-dir", str(folder), "--val-resize-size", "18", "--val-images", "99"]
    _, out, _ = run(*flags, "--budget-params", "0.2", "--latency-batch", "0", "--no-picture", weights=None)
    command = shlex.split(re.search(r"evaluate it: (.*)", out)[1])
    assert command[:2] == ["python", "train_adn.py"]
    assert str(folder / "checkpoint.pth") in command
    _, again, _ = run(*command[2:], weights=None)
    assert re.search(r"^Test: .*  99 images .*", again, flags=re.MULTILINE)[0] in out.splitlines()


def test_an_impossible_budget_is_said_before_the_long_part(run):
    code, out, err = run("--budget-gmacs", "0.001", "--latency-batch", "0")
    assert code == 2
    assert re.search(r"the smallest there is has 0\.007 GMACs \(TTT\)", err)
    assert "Test:" not in out


def test_mixed_precision_and_layout_are_said(run):
    code, out, _ = run("--amp", "--amp-dtype", "bf16", "--no-channels-last")
    assert code == 0
    assert "precision bf16, memory_format contiguous_format" in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--skip-cfg", "true", "true", "true", "true"], "'true' is not understood"),
        (["--skip-cfg", "True", "False"], "the model has 3 skippable stages"),
        (["--skip-cfg", "TTFF"], "the model has 3 skippable stages"),
        (["--weights", "no-such.pth"], "no-such.pth: no such file, nor a released network"),
        (["--model", "resnet34"], "is of --model resnet20, not resnet34"),
        (["--stem", "imagenet"], "no setting stem"),
        (["--model", "swin_t", "--weights", "resnet50_adn"], "use --model resnet50"),
    ],
)
def test_mistakes_get_one_clear_line_and_exit_code_2(run, flags, words):
    code, _, err = run(*flags)
    assert code == 2
    assert words in err
    assert err.startswith("train_adn.py: error: ")
    assert "Traceback" not in err


def test_no_weights_is_a_mistake(run):
    code, _, err = run(weights=None)
    assert code == 2
    assert "need --weights" in err
    code, _, err = run("--resume", "auto", weights=None)
    assert code == 2
    assert "no checkpoint in" in err


def test_weights_that_do_not_fit_are_refused(run, digits_run, tmp_path):
    content = torch.load(digits_run / "checkpoint.pth", weights_only=False)
    torch.save({"model": content["model"], "classes": list("abcdefghij")}, tmp_path / "letters.pth")
    code, _, err = run(weights=tmp_path / "letters.pth")
    assert code == 2
    assert "was trained on other data, with 10 classes (a, b, c, …); --data-path has 10 classes (0, 1, 2, …)" in err
    torch.save(content["model"], tmp_path / "plain.pth")
    code, _, err = run("--model", "resnet32", weights=tmp_path / "plain.pth")
    assert code == 2
    assert "does not fit" in err


def test_without_matplotlib_the_table_is_there_and_a_line_says_what_is_missing(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, _ = run("--skip-cfg", "base", "super", "--latency-batch", "0")
    assert code == 0
    assert "subnets.png was not drawn: matplotlib is missing (pip install matplotlib" in out
    assert {path.name for path in tmp_path.iterdir()} == {"subnets.csv", "subnets.json"}
    assert len(json.loads((tmp_path / "subnets.json").read_text())["subnets"]) == 2


def test_the_picture_shows_rows_and_others_over_each_known_cost(tmp_path):
    pytest.importorskip("matplotlib", reason="the picture is an extra that needs matplotlib")
    rows = [Row("TTTT", 2.56, 17.1, None, 75.0, 92.0), Row("FFFF", 4.09, 25.6, None, 77.0, 93.0)]
    sizes = []
    for others in ({}, {"one": [{"gmacs": 3, "top1": 76}], "two": [{"gmacs": 4, "latency_ms": 5, "top1": 76.5}]}):
        picture.draw(rows, "title", tmp_path / "subnets.png", others)
        with PIL.Image.open(tmp_path / "subnets.png") as image:
            sizes.append(image.size)
            colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
        assert ((44, 160, 44) in colours) is bool(others)  # the second one's green
        assert (31, 119, 180) in colours
    measured = [replace(row, latency_ms=3.0) for row in rows]
    picture.draw(measured, "title", tmp_path / "subnets.png", others)
    with PIL.Image.open(tmp_path / "subnets.png") as image:
        sizes.append(image.size)
    assert sizes == [(1050, 675), (1050, 675), (2100, 675)]
