"""python examples/executorch_classify.py network.pte picture.jpg TTFF"""

import json
import sys
from pathlib import Path

import torch
from executorch.runtime import Runtime
from picture import read, say

file, picture, word = sys.argv[1:]
facts = json.loads(Path(f"{file}.json").read_text())
network = Runtime.get().load_program(file).load_method(word)
(logits,) = network.execute([torch.from_numpy(read(picture, facts["image"]))])
say(logits[0].numpy(), facts["classes"])
