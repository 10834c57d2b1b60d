"""The methods of training, by the name that `--method` takes. Imports no torch, so that `--help` answers at once.

Each is a list of passes (`utils/train/passes.py`), in a file of its own with the flags that it has.
"""

from methods.adn import AdaptiveDepth, Individual, add_flags, needs

METHODS = {"adn": AdaptiveDepth, "individual": Individual}

__all__ = ["METHODS", "add_flags", "needs"]
