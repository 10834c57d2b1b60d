"""The parts of `python -m tools.benchmark`: flags, the things measured, results, targets and report."""
