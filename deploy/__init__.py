"""From a trained network to a device. All of it imports the rest of the project, and nothing of the rest imports it.

Export: `export.py` is the command; `switch.py` makes all depths one program; `to_onnx.py`, `to_executorch.py` and
`to_torch.py` write and run a format each. Running: `profile.py` measures, `governor.py` chooses, `simulate.py` and
`live.py` show what becomes of a load.
"""
