"""Checkpoints of the official code, in the layout of ours: so a run that it began goes on here.

Their keys are ours, and so are the networks' state dicts. Two things differ: the optimizer's state is numbered by the
official order of parameters, and there is no `progress`, because they are written between epochs only.
"""

from collections.abc import Mapping
from typing import Any

from utils.train.optim import names_by_group


def in_our_layout(content: Mapping[str, Any], group_of: Mapping[str, str]) -> dict[str, Any]:
    """`content` as this run would have written it; `group_of` names the group of each of its parameters."""
    saved = content["optimizer"]
    ours = names_by_group(group_of)
    their_group_of = {name: group_of[name] for name in content["model"] if name in group_of}
    their_group_of |= {name: "other" for name, group in group_of.items() if group == "pos_embedding"}  # has none there
    theirs = names_by_group(their_group_of)
    if [len(names) for names in theirs.values()] != [len(group["params"]) for group in saved["param_groups"]]:
        raise ValueError("its parameter groups are others")

    their_number = {name: n for n, name in enumerate(name for names in theirs.values() for name in names)}
    settings = dict(zip(theirs, saved["param_groups"], strict=True))
    state, param_groups, count = {}, [], 0
    for group, names in ours.items():
        numbers = list(range(count, count + len(names)))
        param_groups.append({**settings.get(group, settings["other"]), "params": numbers})
        for number, name in zip(numbers, names, strict=True):
            if their_number[name] in saved["state"]:
                state[number] = saved["state"][their_number[name]]
        count += len(names)
    return {
        **content,
        "optimizer": {"state": state, "param_groups": param_groups},
        "progress": {"epoch": content["epoch"] + 1},
    }
