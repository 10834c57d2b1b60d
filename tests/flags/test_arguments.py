"""The command line: its words and its mistakes, without a network and without torch."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

import methods
from tests.launch import ROOT
from utils.errors import UserError
from utils.flags.arguments import parser
from utils.flags.evaluation import chosen


class Widths:
    """A network of another kind than ours, by the contract."""

    subnets = ("1.0", "0.5", "0.25")

    def parse(self, word: str) -> str:
        if word not in self.subnets:
            raise ValueError(f"{word!r} is no width")
        return word


def test_nothing_means_the_largest_all_means_all_and_each_comes_once():
    assert chosen(Widths(), None) == ["1.0"]
    assert chosen(Widths(), ["all"]) == ["1.0", "0.5", "0.25"]
    assert chosen(Widths(), ["0.25", "1.0", "0.25"]) == ["0.25", "1.0"]
    for words in (["0.5", "half"], ["all", "0.5"]):
        with pytest.raises(UserError, match=r"^--skip-cfg: '(half|all)' is no width"):
            chosen(Widths(), words)


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        *(("True True False True", ["TTFT"]), ("T T F T", ["TTFT"]), ("True T F T", ["TTFT"]), ("F", ["F"])),
        *(("TTFT", ["TTFT"]), ("TTFF super base", ["TTFF", "super", "base"]), ("all", ["all"])),
        *(("true true", ["true", "true"]), ("T T FF", ["T", "T", "FF"])),
    ],
)
def test_one_word_per_stage_becomes_one_word(words, kept):
    given = parser(methods).parse_args(["--test-only", "--skip-cfg", *words.split()]).skip_cfg
    assert chosen(SimpleNamespace(subnets=["all"], parse=str), given) == list(dict.fromkeys(kept))


MISTAKES = {
    "--epoch 3": "unknown argument --epoch: did you mean --epochs",
    "--opt sdg": "unknown 'sdg': did you mean sgd",
    "--lr -1": "argument --lr: expected at least 0, not -1",
    "--lr ten": "argument --lr: expected a number, not 'ten'",
    "--batch-size 0": "argument -b/--batch-size: expected at least 1, not 0",
    "--label-smoothing 2": "expected at least 0 and at most 1, not 2",
    "--subpath-temp 0": "expected more than 0, not 0",
    "--test-only --budget-gmacs nan": "argument --budget-gmacs: expected more than 0, not nan",
    "--latency-batch x --test-only": "expected an integer, not 'x'",
    "--no-distillation --base-labels 0.5": "--base-labels has no effect without self-distillation",
    "--no-distillation --fpn": "--fpn has no effect without self-distillation",
    "--method individual --subpath-topk 3": "--subpath-topk has no effect without self-distillation",
    "--method individual --subpath-alpha 0.4": "--subpath-alpha has no effect without --method adn",
    "--opt adamw --momentum 0.5": "--momentum has no effect without --opt sgd",
    "--amp-dtype bf16": "--amp-dtype has no effect without --amp",
    "--model-ema-decay 0.9": "--model-ema-decay has no effect without --model-ema",
    "--lr-scheduler exponentiallr --lr-step-size 3": "--lr-step-size has no effect without --lr-scheduler steplr",
    "--lr-multi-steps 3": "--lr-multi-steps has no effect without --lr-scheduler multisteplr",
    "--lr-scheduler cosineannealinglr --lr-gamma 0.3": "--lr-gamma has no effect without a scheduler that drops",
    "--lr-min 0.1": "--lr-min has no effect without --lr-scheduler cosineannealinglr",
    "--lr-warmup-decay 0.5": "--lr-warmup-decay has no effect without --lr-warmup-epochs",
    "--skip-cfg TTFF": "--skip-cfg has no effect without --test-only or --method individual",
    "--budget-params 3": "--budget-params has no effect without --test-only or --from-table",
    "--predict x.jpg --no-picture": "--no-picture has no effect without --test-only",
    "--weights-dir .": "--weights-dir has no effect without --weights",
    "--ra-reps 4": "--ra-reps has no effect without --ra-sampler",
    "--ra-magnitude 3": "--ra-magnitude has no effect without --auto-augment ra",
    "--auto-augment ra --augmix-severity 4": "--augmix-severity has no effect without --auto-augment augmix",
    "--start-epoch 1 --resume auto": "--start-epoch and --resume contradict each other",
    "--opt sgd_nesterov --momentum 0": "--opt sgd_nesterov needs --momentum above 0",
    "--lr-warmup-epochs 5 --lr-warmup-method linear --lr-warmup-decay 0": "needs --lr-warmup-decay above 0",
    "--seed 9223372036854775808": "argument --seed: expected at least 0 and at most 9223372036854775807",
    "--test-only --weights a.pth --resume b.pth": "--weights and --resume contradict each other without training",
    "--predict x.jpg --weights a.pth --resume auto": "--weights and --resume contradict each other without training",
    "--init-from a.pth --weights b.pth": "--init-from and --weights contradict each other",
    "--middle 1 --method drawn": "--middle has no effect without --method adn",
    "--middle -1": "--middle: expected at least 0, not -1",
    "--draw 0.5 0.3": "--draw has no effect without --method drawn",
    "--method drawn --draw 0.4": "--draw: expected 2 arguments",
    "--method drawn --draw 0.4 1.5": "--draw: expected at least 0 and at most 1, not 1.5",
    "--method drawn --fpn": "--fpn has no effect without self-distillation",
    "--method drawn --ema-teacher": "--ema-teacher has no effect without --method drawn and --model-ema",
    "--method drawn --subpath-alpha 0.3": "--subpath-alpha has no effect without --method adn or --ema-teacher",
    "--sandwich 3": "--sandwich has no effect without --method sandwich",
    "--method sandwich --sandwich 1": "--sandwich: expected at least 2, not 1",
    "--in-place-distillation": "has no effect without --method slimmable or sandwich",
    "--method slimmable --fpn": "--fpn has no effect without self-distillation",
    "--bootstrap off": "--bootstrap has no effect without --method dsnet",
    "--method dsnet --subpath-alpha 0.3": "--subpath-alpha has no effect without --method adn",
    "--method dsnet --gate-cost 1": "--gate-cost has no effect without --method dsnet-gate",
}


@pytest.mark.parametrize(("flags", "words"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_gets_one_line_and_exit_code_2(flags, words, mistake):
    line = mistake(parser(methods).parse_args, *flags.split())
    assert line.startswith("train_adn.py: error: ")
    assert words in line


@pytest.mark.parametrize(
    "flags",
    [
        "--opt adamw --momentum 0.9",  # at its default
        "--weights a.pth --resume auto",  # what a run starts from does not hinder its restart
        "--draw 0.4 0.3 --method adn",
        "--method drawn --subpath-alpha 0.3 --subpath-topk 5 --ema-teacher --model-ema",
        "--method dsnet --model-ema --bootstrap ensemble",
        "--method dsnet-gate --gate-loss corrected --gate-cost 3",
    ],
)
def test_flags_that_go_together_are_taken(flags):
    parser(methods).parse_args(flags.split())


def test_of_several_processes_one_reports_a_mistake(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        parser(methods).parse_args(["--lr", "ten"])
    assert capsys.readouterr().err == ""


def test_help_and_mistakes_need_no_torch():
    for flag, code, where in (("--help", 0, "stdout"), ("--lr=ten", 2, "stderr")):
        line = [sys.executable, "-X", "importtime", "train_adn.py", flag]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert "--lr" in getattr(done, where)
        assert re.search(r"\| +argparse$", done.stderr, flags=re.MULTILINE)
        assert not re.search(r"\| +(torch|numpy|PIL)$", done.stderr, flags=re.MULTILINE)  # torch takes seconds


def test_a_run_json_gives_all_that_flags_can_say(tmp_path):
    said = "--method drawn --draw 0.5 0.2 --lr-multi-steps 3 4 --lr-scheduler multisteplr --amp --norm-weight-decay 0"
    given = parser(methods).parse_args(said.split())
    (tmp_path / "run.json").write_text(json.dumps({"args": vars(given)}))
    again = parser(methods).parse_args(["--from-run", str(tmp_path / "run.json")])
    assert {name for name, value in vars(given).items() if vars(again)[name] != value} == {"from_run"}
