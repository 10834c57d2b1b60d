"""From a trained network to a device. All of it imports the core of the project, and nothing of the core imports it.

Export: `export.py` is the command; `switch.py` makes all depths one program; `to_onnx.py`, `to_executorch.py` and
`to_torch.py` write and run a format each. Running: `profile.py` is what a device was measured to do (`measure.py`,
`energy.py`), `governor.py` chooses, `arrivals.py` is a load, `simulate.py` and `live.py` show what becomes of it
(`report.py`). `command.py` is what these commands share with `benchmarks/` and `tools/`.
"""
