"""The methods of training, by the name that `--method` takes. Imports no torch, so that `--help` answers at once.

Each is a list of passes (`utils/train/passes.py`), in a file of its own with the flags that it has.
"""

from methods import adn

METHODS = {"adn": adn.AdaptiveDepth, "individual": adn.Individual}

__all__ = ["METHODS", "adn"]
