"""Started by torchrun: every process evaluates its share of a small folder and says what it knows afterwards."""

import json
import sys
from pathlib import Path

import torch

import models
from presets import ToFloat
from sampler import EvalSampler
from utils import processes as distributed
from utils.data.loading import eval_loader, load_data
from utils.errors import UserError
from utils.evaluate.accuracy import evaluate
from utils.flags.arguments import parser

folder, output = sys.argv[1:]
distributed.connect()
distributed.join(torch.device("cpu"))
flags = "--test-only --batch-size 2 --val-resize-size 32 --val-crop-size 32 --workers 0 --device cpu --data-path"
args = parser().parse_args([*flags.split(), folder])
data = load_data(args)
torch.manual_seed(0)
model = models.resnet18(num_classes=2)
to_float = ToFloat()
loader = eval_loader(data, args, EvalSampler(len(data.val), distributed.rank(), distributed.world_size()))
settings = (model, loader, model.subnets[:3], lambda batch: (to_float(batch.images), batch.targets))
results = evaluate(*settings)
try:
    refusal = ""
    evaluate(*settings, on_corrupt="error")
except UserError as error:
    refusal = str(error)
found = {models.subnet_name(skip): vars(result) for skip, result in results.items()}
report = {"results": found, "refusal": refusal, "own": len(loader.sampler), "training": model.training}
Path(output, f"{distributed.rank()}.json").write_text(json.dumps(report))
distributed.leave()
