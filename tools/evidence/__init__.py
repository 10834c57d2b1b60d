"""The parts of `python tools/reproduce.py`: the grid of runs, how they run, verdicts, pictures and the report."""
