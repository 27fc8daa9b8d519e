"""What one update cost at earlier commits: counts kept in a file, and a picture of them.

Qwen3-0.6B with four layers, float32, fully sharded over 8 virtual CPU devices.
"""

import json
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.counts import Row, measure

FILE = Path(__file__).with_name("results") / "history.jsonl"
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "history.png"
COUNTS = {
    "collectives": "collectives per update",
    "received": "MB received per device",
    "gflop": "GFLOP per device",
    "temporaries": "MB of temporaries per device",
}


def rows() -> list[Row]:
    """Counts the current commit on both kinds of mesh axes."""
    return [measure("0.6b", "fsdp", entry=entry, layers=4) for entry in ("explicit", "auto")]


def add(found: list[Row], path: Path = FILE) -> None:
    """Appends the counts to the file, under the name and the date of the commit."""
    git = ["git", "log", "-1", "--format=%h %cs"]
    commit, date = subprocess.check_output(git, cwd=path.parent, text=True).split()
    with path.open("a", encoding="utf-8") as file:
        for row in found:
            kept = {name: round(getattr(row, name), 1) for name in COUNTS}
            line = {"commit": commit, "date": date, "entry": row.entry, **kept}
            file.write(json.dumps(line) + "\n")


def draw(path: Path = FILE, picture: Path = PICTURE) -> None:
    """Draws the counts over the commits of the file, in its order."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    commits = list(dict.fromkeys(line["commit"] for line in lines))
    figure, panels = plt.subplots(2, 2, figsize=(9, 5), layout="constrained", sharex=True)
    for (name, label), axes in zip(COUNTS.items(), panels.flat, strict=True):
        for entry, style in (("explicit", "o-"), ("auto", "s--")):
            points = [(line["commit"], line[name]) for line in lines if line["entry"] == entry]
            axes.plot(*zip(*points, strict=True), style, label=f"{entry.title()} axes")
        axes.set(title=label, ylim=(0, 1.2 * max(line[name] for line in lines)))
        axes.set_xticks(range(len(commits)), commits, rotation=30)
        axes.grid(alpha=0.3)
    panels[0, 0].legend()
    figure.suptitle("one update of Qwen3-0.6B with 4 layers, sharded over 8 devices")
    figure.supxlabel("commit")
    figure.savefig(picture, dpi=100)
    plt.close(figure)
