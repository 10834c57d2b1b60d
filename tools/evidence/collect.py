"""results/<grid>.json: everything that the runs of a grid came to, in one file that can be committed."""

import json
from pathlib import Path
from typing import Any

from tools.evidence.grid import Grid
from tools.evidence.runner import RESULT
from utils.errors import UserError
from utils.files import whole_file

STEPS = "steps.json"


def collect(grid: Grid, folder: Path, results: Path, command: str) -> Path:
    """Gather what is finished in `folder`; written anew after every call, whatever stood there."""
    runs = [folder / run.name / RESULT for run in grid.runs()]
    steps = folder / STEPS
    content = {
        "grid": grid.name,
        "note": grid.note,
        "command": command,
        "planned": len(runs),
        "runs": [json.loads(path.read_text()) for path in runs if path.exists()],
        "steps": json.loads(steps.read_text()) if steps.exists() else [],
    }
    path = results / f"{grid.name}.json"
    with whole_file(path) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")
    return path


def read(results: Path) -> list[dict[str, Any]]:
    """Every grid's results there are, the larger grids first."""
    found = []
    for path in sorted(results.glob("*.json")):
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None
        if "grid" in content and "runs" in content:
            found.append(content)
    return sorted(found, key=lambda content: -content["planned"])
