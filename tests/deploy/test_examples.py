"""The examples, as a user starts them: each tells what torch tells of a picture, at two depths."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from deploy import writing
from deploy.export import load_format
from deploy.switch import Wanted
from presets import ToFloat, decode_pil, eval_transform
from tests.deploy.shallow import SIZE, batch, shallow
from tests.launch import ENVIRONMENT, ROOT
from utils.errors import UserError

EXAMPLES = ROOT / "examples"
MODEL = shallow("mobilenet")
WORDS = ("FFF", "TFT")
CLASSES = [f"class {n}" for n in range(7)]


WRITTEN: dict[str, Path] = {}  # by format


@pytest.fixture
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the format that is asked for."""
    if request.param in WRITTEN:
        return WRITTEN[request.param]
    try:
        form = load_format(request.param)
    except UserError as error:
        pytest.skip(str(error))
    image = writing.image_of({"val_crop_size": SIZE, "val_resize_size": 37, "interpolation": "bicubic"}, None)
    fixed = request.param == "executorch"
    wanted = Wanted(MODEL, list(map(MODEL.parse, WORDS)), batch(1 if fixed else 2), not fixed, {})
    path = tmp_path_factory.mktemp("examples") / "network"
    form.save(wanted._replace(facts={"image": image, "classes": CLASSES}), path)
    WRITTEN[request.param] = path
    return path


def picture(path: Path, *size: int) -> Path:
    Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 90).convert("RGB").rotate(20, fillcolor=(200, 90, 10)).save(path)
    return path


def compare(line: list[object], path: Path, resize: int) -> None:
    """An example's answers with torch's."""
    pixels = ToFloat()(eval_transform(resize, SIZE, "bicubic")(decode_pil(path))[None])
    for word in WORDS:
        chances = MODEL(pixels, MODEL.parse(word))[0].softmax(0)
        done = subprocess.run(
            [*map(str, line), path, word], capture_output=True, text=True, env=ENVIRONMENT, timeout=120
        )
        assert done.returncode == 0, done.stderr
        chance, _, name = done.stdout.splitlines()[-1].partition(" % ")
        assert name == f"class {chances.argmax()}"
        assert float(chance) == pytest.approx(100 * chances.max().item(), abs=0.06)  # it is rounded


@pytest.mark.parametrize(
    ("network", "runtime"),
    [("onnx", "onnxruntime"), ("onnx", "openvino"), ("executorch", "executorch"), ("torch", "torch")],
    indirect=["network"],
)
def test_a_program_in_python_tells_what_torch_tells(network: Path, runtime: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    image = picture(tmp_path / "picture.png", 60, 50)
    compare([sys.executable, EXAMPLES / f"{runtime}_classify.py", network], image, 37)


@pytest.mark.parametrize("network", ["onnx"], indirect=True)
def test_a_page_in_javascript_tells_what_torch_tells(network: Path, tmp_path: Path) -> None:
    if not shutil.which("node") or not (EXAMPLES / "node_modules" / "onnxruntime-web").exists():
        pytest.skip("needs node, and `npm install` in examples/")
    image = picture(tmp_path / "picture.png", SIZE, SIZE)
    compare(["node", EXAMPLES / "web_classify.mjs", network], image, SIZE)


def test_logits_differ_between_the_depths() -> None:
    """Else the others would prove nothing."""
    assert not torch.allclose(MODEL(batch(), MODEL.parse(WORDS[0])), MODEL(batch(), MODEL.parse(WORDS[1])), atol=0.05)
