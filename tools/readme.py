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
from tools.sections import put  # noqa: E402

README = ROOT / "README.md"


def benchmarks() -> str:
    files = sorted((ROOT / "results").glob("benchmark-*.json"))
    return "\n\n".join(report.folded(Results.of(json.loads(path.read_text()))) for path in files)


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
