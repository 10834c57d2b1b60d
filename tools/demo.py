"""`make demo`: the whole of the project in a few minutes, without ImageNet and without a GPU.

Trains an adaptive ResNet-18 on the bundled digits with the user's own command, then evaluates its 16 sub-networks, with
the batch-norm statistics of training and with statistics of their own, and draws accuracy over cost.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

TRAIN_ADN = Path(__file__).parent.parent / "train_adn.py"
RECIPE = "--model resnet18 --stem small --data-path digits --val-resize-size 16 --val-crop-size 16"
TRAINING = (
    "--train-crop-size 16 --epochs 8 --batch-size 32 --lr 0.05 --lr-scheduler cosineannealinglr --lr-warmup-epochs 1 "
    "--lr-warmup-method linear --weight-decay 5e-4 --norm-weight-decay 0 --print-freq 20 --calibrate 20 --resume auto"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs/demo"), help="where everything goes (%(default)s)"
    )
    folder = parser.parse_args().output_dir
    train = f"{RECIPE} {TRAINING} --output-dir {shlex.quote(str(folder))}"
    test = (
        f"{RECIPE} --test-only --weights {shlex.quote(str(folder / 'checkpoint.pth'))} --skip-cfg all --batch-size 256"
    )
    raw, own = (shlex.quote(str(place)) for place in (folder / "statistics of training", folder))
    beside = shlex.quote(str(folder / "statistics of training" / "subnets.json"))
    tests = (
        f"{test} --calibrate 0 --latency-batch 0 --no-picture --output-dir {raw}",
        f"{test} --compare {beside} --output-dir {own}",
    )
    for arguments in (train, *tests):
        print(f"\n$ python train_adn.py {arguments}\n", flush=True)
        code = subprocess.run([sys.executable, TRAIN_ADN, *shlex.split(arguments)], check=False).returncode
        if code:
            return code
    print(f"\nOne set of weights, 16 networks. The picture: {folder / 'subnets.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
