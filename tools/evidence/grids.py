"""The grids of `tools/reproduce.py`."""

from tools.evidence.grid import ALL, MAIN, Grid, Setting

CONVOLUTIONAL = (
    "--data-path fashion-mnist --batch-size 128 --amp --lr 0.1 --lr-scheduler cosineannealinglr --weight-decay 5e-4 "
    "--norm-weight-decay 0 --bias-weight-decay 0"
)
TRANSFORMER = (
    "--data-path fashion-mnist --batch-size 128 --amp --opt adamw --lr 0.001 --weight-decay 0.05 --norm-weight-decay 0 "
    "--bias-weight-decay 0 --transformer-embedding-decay 0 --lr-scheduler cosineannealinglr --clip-grad-norm 5"
)
ADAMW = (  # learns more than SGD does from so few steps
    "--data-path fashion-mnist --amp --opt adamw --lr 0.001 --weight-decay 0.05 --norm-weight-decay 0 "
    "--bias-weight-decay 0 --lr-scheduler cosineannealinglr"
)
QUICKLY = "--batch-size 32 --epochs 12 --train-images 3000 --val-images 500 --workers 0 --print-freq 50"
SHORTLY = "--batch-size 64 --epochs 3 --train-images 8000 --workers 0 --print-freq 25"
LONG = "--epochs 20 --lr-warmup-epochs 2 --lr-warmup-method linear --print-freq 100"

FULL = Grid(
    name="full",
    note="all 60,000 training images, 20 epochs, on one GPU",
    settings=(
        Setting("resnet18", "--model resnet18 --stem small", f"{CONVOLUTIONAL} {LONG}", ALL, 2),
        Setting("resnet50", "--model resnet50 --stem small", f"{CONVOLUTIONAL} {LONG}", MAIN, 4),
        Setting("swin_t", "--model swin_t --patch-size 2", f"{TRANSFORMER} {LONG}", MAIN, 3),
    ),
    seeds=(0, 1, 2),
)

QUICK = Grid(
    name="quick",
    note="QUICK: 3,000 of the 60,000 training images, 12 epochs, small enough for a CPU",
    settings=(
        Setting("resnet18", "--model resnet18", f"{ADAMW} {QUICKLY}", ALL, 1.7),
        Setting("swin_t", "--model swin_t --patch-size 7 --window-size 2", f"{ADAMW} {QUICKLY}", MAIN, 2.5),
    ),
    seeds=(0, 1, 2),
    all_subnets=False,
)

SHORT = Grid(
    name="short",
    note="SHORT: 8,000 of the 60,000 training images, 3 epochs: far from trained; what `quick` is when cut shorter",
    settings=(Setting("resnet18", "--model resnet18", f"{ADAMW} {SHORTLY}", ALL, 1.0),),
    seeds=(0, 1, 2),
    all_subnets=False,
)
