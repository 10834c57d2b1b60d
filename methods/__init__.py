"""The methods of training, by the name that `--method` takes. Imports no torch, so that `--help` answers at once.

Each is a list of passes (`utils/train/passes.py`), in a file of its own with the flags that it has.
"""

from argparse import Namespace, _ArgumentGroup

from methods import adn, drawn, dsnet, san, slimmable
from utils.flags.parsing import Needs

METHODS = {"adn": adn.AdaptiveDepth, "individual": adn.Individual, "drawn": drawn.Drawn}
METHODS |= {"slimmable": slimmable.Slimmable, "sandwich": slimmable.Sandwich}
METHODS |= {"dsnet": dsnet.Slimmable, "dsnet-gate": dsnet.Gate, "san": san.ScaleAdaptive}
FILES = (adn, drawn, slimmable, dsnet, san)


def add_flags(group: _ArgumentGroup) -> None:
    for method in FILES:
        method.add_flags(group)


def needs(args: Namespace) -> Needs:
    """What the flags need to have an effect."""
    return tuple(need for method in FILES for need in method.needs(args))


defaults = adn.defaults  # of the flags that were left open and depend on others
