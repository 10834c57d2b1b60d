"""What a run computes with, and what it refuses before its first step."""

import platform

import pytest
import torch

import train_adn
from tests.launch import ENVIRONMENT, launch
from utils import setup
from utils.errors import UserError


@pytest.mark.parametrize("name", ["mps", "meta", "xla", "toaster"])
def test_a_device_of_another_kind_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=rf"^--device {name}: use cuda, cpu or auto$"):
        setup.choose_device(name)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert setup.choose_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match=r"^--device cuda:1: no CUDA GPU can be used here"):
        setup.choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert setup.choose_device("cuda:1").index == 1
    with pytest.raises(UserError, match=r"^--device cuda:2: there are 2 GPUs here"):
        setup.choose_device("cuda:2")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only there oneDNN can be told to pass over instructions")
def test_amp_is_float32_on_a_cpu_that_emulates_bfloat16_and_says_so():
    script = "import torch; from utils.setup import fastest_precision; print(fastest_precision(torch.device('cpu')))"
    done = launch("-c", script, env=ENVIRONMENT | {"ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert (done.returncode, done.stdout) == (0, "fp32\n")
    assert "--amp: float32, since this CPU emulates bfloat16" in done.stderr


def test_a_network_of_one_image_size_is_told_of_another_one_before_it_trains(tmp_path, capsys):
    flags = "--model vit_b_16 --patch-size 7 --data-path digits --device cpu --workers 0 --train-crop-size 28"
    assert train_adn.main([*flags.split(), "--output-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "error: --val-crop-size 32: this network takes images of one size, which --train-crop-size makes 28" in error
    assert "give --val-crop-size 28 and a --val-resize-size to go with it, such as 32" in error
    assert not list(tmp_path.iterdir())
