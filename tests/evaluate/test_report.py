"""`--test-only` as a user meets it: lines, table, files, picture, budgets, and what it says of mistakes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch

import models
import models.zoo
import train_adn
from tests.filled import filled
from utils.evaluate import picture, table
from utils.evaluate.table import Row

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    model = models.resnet18(num_classes=10)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(filled(model.state_dict()), path)
    return path


@pytest.fixture
def run(weights, tmp_path, capsys):
    """The command on the digits: (exit code, stdout, stderr)."""

    def run(*flags, weights=weights):
        common = f"--test-only --device cpu --data-path digits --batch-size 64 --output-dir {tmp_path}"
        code = train_adn.main([*common.split(), *(["--weights", str(weights)] if weights else []), *flags])
        return code, *capsys.readouterr()

    return run


def test_one_sub_network_gives_one_line_as_the_reference_does(run, tmp_path):
    code, out, _ = run("--skip-cfg", "True", "False", "True", "True")
    assert code == 0
    opening, line = out.splitlines()
    assert re.fullmatch(r"Test: TFTT  355 images  loss \d+\.\d{4}  Acc@1 \d+\.\d{3} Acc@5 \d+\.\d{3}", line)
    assert "model resnet18" in opening
    assert "precision fp32, memory_format channels_last" in opening
    assert list(tmp_path.iterdir()) == []


def test_all_gives_the_table_by_cost_and_its_files(run, tmp_path):
    code, out, _ = run("--skip-cfg", "all", "--no-picture")
    assert code == 0
    rows, facts = table.read(tmp_path / "subnets.json")
    assert sorted(row.name for row in rows) == sorted(models.subnet_name(skip) for skip in models.resnet18().subnets)
    assert [row.gmacs for row in rows] == sorted(row.gmacs for row in rows)
    assert all(row.latency_ms > 0 for row in rows)
    assert facts["model"] == "resnet18"
    assert facts["images"] == 355
    assert facts["versions"]["torch"] == torch.__version__
    model = models.resnet18(num_classes=10)
    for row in rows:
        cost = models.cost(model, models.parse_skips([row.name], 4)[0], image_size=32)
        assert (row.gmacs, row.params_m) == (cost.macs / 1e9, cost.parameters / 1e6)
        assert f"Acc@1 {row.top1:.3f} Acc@5 {row.top5:.3f}" in re.search(rf"Test: {row.name} .*", out)[0]
    assert len((tmp_path / "subnets.csv").read_text().splitlines()) == 17
    assert not (tmp_path / "subnets.png").exists()


def test_a_budget_without_a_word_chooses_among_all(run):
    code, out, _ = run("--budget-gmacs", "0.03", "--budget-params", "8", "--latency-batch", "0", "--no-picture")
    assert code == 0
    assert "Testing 16 sub-networks" in out
    chosen = re.search(r"best within 0\.03 GMACs and 8 M parameters: (\w+)", out)[1]
    accuracy = {name: float(top1) for name, top1 in re.findall(r"^Test: (\w+) .* Acc@1 (\S+)", out, flags=re.MULTILINE)}
    fitting = re.findall(r"^[* ] ([TF]{4}) +(\S+) +(\S+) ", out, flags=re.MULTILINE)
    assert len(fitting) == 16
    names = [name for name, gmacs, params in fitting if float(gmacs) <= 0.03 and float(params) <= 8]
    assert accuracy[chosen] == max(accuracy[name] for name in names)


def test_an_impossible_budget_is_said_before_the_long_part(run):
    code, out, err = run("--budget-gmacs", "0.001", "--latency-batch", "0")
    assert code == 2
    assert re.search(r"the smallest there is has 0\.018 GMACs \(TTTT\)", err)
    assert "Test:" not in out


def test_mixed_precision_and_layout_are_said(run):
    code, out, _ = run("--amp", "--no-channels-last")
    assert code == 0
    assert "precision bf16, memory_format contiguous_format" in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--skip-cfg", "true", "true", "true", "true"], "'true' is not understood"),
        (["--skip-cfg", "TTF"], "the model has 4 skippable stages"),
        (["--weights", "no-such.pth"], "no-such.pth: no such file, nor a released network"),
        (["--model", "resnet34"], "does not fit"),
        (["--model", "swin_t", "--weights", "resnet50_adn"], "use --model resnet50"),
        (["--resume", "auto"], "no checkpoint in"),
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


def test_weights_of_other_classes_are_refused(run, weights, tmp_path):
    state = torch.load(weights)
    torch.save({"model": state, "classes": list("abcdefghij")}, tmp_path / "letters.pth")
    code, _, err = run(weights=tmp_path / "letters.pth")
    assert code == 2
    assert "was trained on other classes (10: a, b, c, …) than digits has (10: 0, 1, 2, …)" in err


def test_without_matplotlib_the_table_is_there_and_a_line_says_what_is_missing(weights, tmp_path):
    blocked = "import sys; sys.modules['matplotlib'] = None; import train_adn; sys.exit(train_adn.main(sys.argv[1:]))"
    flags = (
        f"--test-only --device cpu --data-path digits --weights {weights} --skip-cfg base super --output-dir {tmp_path}"
    )
    result = subprocess.run(
        [sys.executable, "-c", blocked, *flags.split(), "--latency-batch", "0"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "subnets.png was not drawn: matplotlib is missing (pip install matplotlib" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"subnets.csv", "subnets.json"}
    assert len(json.loads((tmp_path / "subnets.json").read_text())["subnets"]) == 2


def test_the_picture_shows_rows_and_published_points(tmp_path):
    pytest.importorskip("matplotlib", reason="the picture is an extra that needs matplotlib")
    rows = [Row("TTTT", 2.56, 17.1, None, 75.0, 92.0), Row("FFFF", 4.09, 25.6, None, 77.0, 93.0)]
    sizes = []
    for published in ({}, models.zoo.published("resnet50")):
        picture.draw(rows, "title", tmp_path / "subnets.png", published)
        with PIL.Image.open(tmp_path / "subnets.png") as image:
            sizes.append(image.size)
            colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
        assert ((44, 160, 44) in colours) is bool(published)  # the second release's green
        assert (31, 119, 180) in colours
    assert sizes == [(1050, 675)] * 2
