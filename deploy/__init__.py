"""A trained network for other runtimes: one file with all its depths, or with one of them.

`export.py` is the command; `switch.py` makes all depths one program; `to_onnx.py`, `to_executorch.py` and `to_torch.py`
write and run a format each. All of it imports the rest of the project, and nothing of the rest imports it.
"""
