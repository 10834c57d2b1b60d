"""The methods of training, by the name that `--method` takes. Imports no torch, so that `--help` answers at once.

Each is a list of passes (`utils/train/passes.py`), in a file of its own with the flags that it has.
"""

from argparse import Namespace, _ArgumentGroup

from methods import adn, drawn, san

METHODS = {
    "adn": adn.AdaptiveDepth,
    "individual": adn.Individual,
    "drawn": drawn.Drawn,
    "san": san.ScaleAdaptive,
}


def add_flags(group: _ArgumentGroup) -> None:
    for method in (adn, drawn, san):
        method.add_flags(group)


def needs(args: Namespace) -> tuple[tuple[str, bool, str], ...]:
    """Which of the flags have an effect, and when: (flags, whether they do, what they need in words)."""
    return *adn.needs(args), *drawn.needs(args), *san.needs(args)
