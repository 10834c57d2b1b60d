"""python examples/torch_classify.py network.pt2 picture.jpg TTFF"""

import json
import sys

import torch
from picture import read, say

file, picture, word = sys.argv[1:]
extra = {"adaptive_depth.json": ""}
network = torch.export.load(file, extra_files=extra).module()
facts = json.loads(extra["adaptive_depth.json"])
skip = torch.tensor([letter == "T" for letter in word])
logits = network(torch.from_numpy(read(picture, facts["image"])), skip)
say(logits[0].detach().numpy(), facts["classes"])
