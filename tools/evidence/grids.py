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
SMALL = (  # many steps for their images: what counts is how far a network is trained
    "--data-path fashion-mnist --batch-size 32 --amp --lr-scheduler cosineannealinglr --norm-weight-decay 0 "
    "--bias-weight-decay 0 --workers 0 --print-freq 50 --val-images 1000"
)
SGD, ADAMW = "--lr 0.05 --weight-decay 5e-4", "--opt adamw --lr 0.0005 --weight-decay 0.05"
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
    note="QUICK: 10,000 or 12,000 of the 60,000 training images, 8 to 10 epochs, small enough for a CPU",
    settings=(
        Setting("resnet32", "--model resnet32", f"{SMALL} {SGD} --epochs 8 --train-images 12000", ALL, 2.5),
        Setting("resnet18", "--model resnet18", f"{SMALL} {ADAMW} --epochs 10 --train-images 10000", MAIN, 3.5),
        Setting(
            "swin_t",
            "--model swin_t --patch-size 7 --window-size 2",
            f"{SMALL} {ADAMW} --epochs 8 --train-images 10000",
            MAIN,
            3,
        ),
    ),
    seeds=(0, 1, 2),
    all_subnets=False,
)
