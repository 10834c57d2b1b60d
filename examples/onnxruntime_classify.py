"""python examples/onnxruntime_classify.py network.onnx picture.jpg TTFF"""

import json
import sys

import numpy as np
import onnxruntime
from picture import read, say

file, picture, word = sys.argv[1:]
session = onnxruntime.InferenceSession(file)
facts = json.loads(session.get_modelmeta().custom_metadata_map["adaptive_depth"])
skip = np.array([letter == "T" for letter in word])
(logits,) = session.run(["logits"], {"images": read(picture, facts["image"]), "skip": skip})
say(logits[0], facts["classes"])
