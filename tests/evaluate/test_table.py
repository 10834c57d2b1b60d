"""The table of sub-networks: order, files, Pareto front, and the best one within a budget."""

import csv
import json
import random
from dataclasses import asdict

import pytest

import train_adn
from utils.errors import UserError
from utils.evaluate import table
from utils.evaluate.table import Budget, Row
from utils.files import whole_file, write_json

ROWS = [
    Row("TT", gmacs=1.0, params_m=10, latency_ms=5.0, top1=70.0, top5=90.0),
    Row("TF", gmacs=2.0, params_m=12, latency_ms=7.0, top1=69.0, top5=91.0),
    Row("FT", gmacs=2.0, params_m=11, latency_ms=9.0, top1=75.0, top5=92.0),
    Row("FF", gmacs=3.0, params_m=13, latency_ms=8.0, top1=76.0, top5=93.0),
]


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        (Budget(gmacs=1.5), "TT"),
        (Budget(gmacs=2.0), "FT"),
        (Budget(latency_ms=7.0), "TT"),
        (Budget(latency_ms=8.5), "FF"),
        (Budget(gmacs=2.5, latency_ms=8.5), "TT"),
        (Budget(params_m=12), "FT"),
        (Budget(params_m=1000), "FF"),
    ],
)
def test_the_most_accurate_that_fits_is_chosen(budget, name):
    assert budget.best(ROWS).name == name


def test_of_equally_accurate_ones_the_cheapest_is_chosen():
    rows = [Row("FF", 3.0, 13, None, 70.0, 90.0), Row("TT", 1.0, 10, None, 70.0, 90.0)]
    assert Budget(params_m=20).best(rows).name == "TT"


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(gmacs=0.5), r"within 0\.5 GMACs: the smallest there is has 1\.000 GMACs \(TT\)"),
        (Budget(latency_ms=1), r"5\.000 ms \(TT\)"),
        (Budget(params_m=10.5, latency_ms=1), r"5\.000 ms \(TT\) and 10\.000 M parameters \(TT\)"),
    ],
)
def test_when_nothing_fits_the_smallest_is_named(budget, words):
    with pytest.raises(UserError, match=words):
        budget.best(ROWS)


def test_a_latency_budget_needs_latencies():
    with pytest.raises(UserError, match="latency was not measured"):
        Budget(latency_ms=1).best([Row("T", 1.0, 1.0, None, 50.0, 60.0)])


def test_the_pareto_front_is_what_no_other_row_beats():
    draw = random.Random(0)
    rows = [Row(str(i), draw.randrange(20) / 2, 1.0, None, float(draw.randrange(30)), 0.0) for i in range(60)]
    front = table.pareto(rows)
    assert [row.gmacs for row in front] == sorted(row.gmacs for row in front)
    for row in rows:
        beaten = any(
            other.gmacs <= row.gmacs and other.top1 >= row.top1 and (other.gmacs, other.top1) != (row.gmacs, row.top1)
            for other in rows
        )
        known = any((other.gmacs, other.top1) == (row.gmacs, row.top1) for other in front)
        assert known is not beaten


def test_the_table_to_read_has_every_row_and_stars_the_front():
    lines = table.as_text([*ROWS, Row("none", 4.0, 14.0, None, 1.0, 2.0)]).splitlines()
    assert lines[1].split() == ["*", "TT", "1.000", "10.00", "70.000", "90.000", "5.00"]
    assert [line.split()[0] for line in lines[2:6]] == ["TF", "*", "*", "none"]
    assert lines[5].endswith("-")


def test_files_say_what_was_measured_and_can_be_read_again(tmp_path):
    paths = table.write(ROWS, {"model": "some_net", "images": 5}, tmp_path / "new")
    assert table.read(paths[1]) == (ROWS, {"model": "some_net", "images": 5})
    with open(paths[0], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["TT", "TF", "FT", "FF"]
    assert float(rows[2]["top1"]) == 75.0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["subnets.csv", "subnets.json"]


def test_a_file_is_whole_or_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ValueError, match="closed"), whole_file(path) as file:
        file.write(b"half") and file.close()  # the flush at the end then fails
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="below-a-file: cannot be written"), whole_file(path / "below-a-file"):
        pass


def test_numbers_of_a_list_stand_in_one_line_and_texts_stay_as_they_are(tmp_path):
    content = {"numbers": [1, 2.5, None], "words": ["x [1\n 2]", "[\n 1\n]"], "pairs": [[1, 2], [3]], "none": []}
    write_json(path := tmp_path / "content.json", content)
    assert json.loads(path.read_text()) == content
    assert '"numbers": [1, 2.5, null],\n' in path.read_text()


def test_a_choice_from_a_table_needs_neither_network_nor_data(tmp_path, capsys):
    choose = ["--from-table", str(tmp_path / "subnets.json"), "--budget-gmacs"]
    numberless = json.dumps({"subnets": [{**asdict(ROWS[0]), "top1": "good"}]})
    for content in ("", "[1]", "{}", '{"subnets": []}', '{"subnets": {}}', numberless):
        (tmp_path / "subnets.json").write_text(content)
        assert train_adn.main([*choose, "2"]) == 2
        assert "not a subnets.json" in capsys.readouterr().err
    facts = {"model": "some_net", "weights": "my weights.pth", "model_ema": True, "data_path": "digits"}
    table.write(ROWS, {**facts, "stem": None, "no_switchable_norms": False, "device": "cpu"}, tmp_path)
    assert train_adn.main([*choose, "2"]) == 0
    out = capsys.readouterr().out
    assert "best within 2 GMACs: FT (2.000 GMACs, 11.00 M parameters, 9.00 ms) Acc@1 75.000 Acc@5 92.000" in out
    assert (
        "--test-only --model some_net --weights 'my weights.pth' --model-ema --data-path digits --skip-cfg FT\n" in out
    )
    assert train_adn.main([*choose, "0.1"]) == 2
    assert "the smallest there is has 1.000 GMACs (TT)" in capsys.readouterr().err
    assert train_adn.main(choose[:2]) == 2
    assert "needs a budget" in capsys.readouterr().err
    assert train_adn.main(["--from-table", str(tmp_path / "none.json"), "--budget-gmacs", "2"]) == 2
    assert "none.json" in capsys.readouterr().err
    assert json.loads((tmp_path / "subnets.json").read_text())["model"] == "some_net"
