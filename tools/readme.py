"""Fill the README's marked sections from what they are about, so that no number in them is typed by hand.

    python tools/readme.py          speed (from results/benchmark-*.json) and the released networks (from models/zoo.py)

`tools/reproduce.py --report` fills the section of the method's evidence in the same way.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models.zoo import RELEASED  # noqa: E402
from tools.bench import report  # noqa: E402
from tools.bench.results import Results  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.files import whole_file  # noqa: E402

README = ROOT / "README.md"


def section(path: Path, name: str) -> str:
    """What stands between a section's markers."""
    _, text, _ = _parts(path, name)
    return text.strip()


def put(path: Path, name: str, text: str) -> None:
    """Put a text between a section's markers, whatever stood there."""
    before, _, after = _parts(path, name)
    with whole_file(path) as file:
        file.write(f"{before}\n{text.strip()}\n{after}".encode())


def _parts(path: Path, name: str) -> tuple[str, str, str]:
    text = path.read_text()
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise UserError(f"{path}: has no section {name}, between the lines {begin} and {end}")
    before, rest = text.split(begin)
    inside, after = rest.split(end)
    return before + begin, inside, end + after


def benchmarks() -> str:
    files = sorted((ROOT / "results").glob("benchmark-*.json"))
    return "\n\n".join(report.markdown(Results.of(json.loads(path.read_text()))) for path in files)


def zoo() -> str:
    lines = ["| weights | `--skip-cfg`: GMACs, Acc@1 (%) |", "|---|---|"]
    for name, weights in RELEASED.items():
        subnets = weights.meta["subnets"].items()
        figures = " · ".join(f"{subnet}: {f['gmacs']:.2f}, **{f['acc@1']:.1f}**" for subnet, f in subnets)
        lines.append(f"| [`{name}`]({weights.meta['page']}) | {figures} |")
    return "\n".join(lines)


SECTIONS = {"benchmark": benchmarks, "zoo": zoo}


if __name__ == "__main__":
    for name, make in SECTIONS.items():
        put(README, name, make())
