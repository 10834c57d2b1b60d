"""python examples/openvino_classify.py network.onnx picture.jpg TTFF"""

import json
import sys

import numpy as np
import openvino
from picture import read, say

file, picture, word = sys.argv[1:]
model = openvino.Core().read_model(file)
facts = json.loads(model.get_rt_info(["framework", "adaptive_depth"]).astype(str))
network = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
skip = np.array([letter == "T" for letter in word])
answer = network({"images": read(picture, facts["image"]), "skip": skip})
say(answer["logits"][0], facts["classes"])
