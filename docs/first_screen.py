"""The picture of README.md: `python docs/first_screen.py`, after `--runs FOLDER` once.

Left, the held-out loss of four optimizers in `python -m train compare speedrun`, from
`first_screen.csv`, which `--runs` writes from the folder of these runs. Right, what an update
costs, from the table in README.md.
"""

import argparse
import csv
import json
import re
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

FOLDER = Path(__file__).resolve().parent
CURVES = FOLDER / "first_screen.csv"
STYLES = {"AdamW": "C7-", "Muon": "C0-", "MiMuon": "C1--", "NorMuon": "C2-."}
COSTS = {
    "collectives": "collectives",
    "received per device": "MB received\nper device",
    "GFLOP per device": "GFLOP\nper device",
}
COLUMNS = ("optimizer", "learning rate", "step", "mean", "deviation", "seeds")


def read_runs(folder: Path, optimizer: str) -> list[tuple[object, ...]]:
    """Rows of `COLUMNS`: the held-out losses of the setting that was run with every seed."""
    with (folder / "results.csv").open() as file:
        settings = {row["optimizer"]: row["setting"] for row in csv.DictReader(file)}
    name, setting = optimizer.lower(), settings[optimizer.lower()]
    chosen = folder / (name if "its own" in setting else f"{name},{setting}")
    losses = defaultdict(list)
    for path in sorted(chosen.glob("seed-*/metrics.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if row["split"] == "validation":
                losses[row["step"]].append(row["loss"])
    config = json.loads((chosen / "seed-0" / "config.json").read_text())
    rate = config["config"]["optimizer"]["learning_rate"]
    return [
        (optimizer, rate, k, round(np.mean(x), 4), round(np.std(x, ddof=1), 4), len(x))
        for k, x in losses.items()
    ]


def costs(readme: str) -> dict[str, tuple[float, float]]:
    """The cost of an update by optax and here, from README.md.

    Example:
        >>> costs("| received per device | 15,854 MB | 453 MB |")
        {'received per device': (15854.0, 453.0)}
    """
    rows = re.findall(
        r"^\| ([^|]+) \| ([\d,]+)[^|]*\| ([\d,]+)[^|]*\|$", readme, flags=re.MULTILINE
    )
    return {
        name: (float(optax.replace(",", "")), float(here.replace(",", "")))
        for name, optax, here in rows
        if name in COSTS
    }


def draw(curves: Path, readme: Path, output: Path) -> None:
    """Draws the picture."""
    rows = list(csv.DictReader(curves.read_text().splitlines()))
    figure, (losses, bars) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    for optimizer, style in STYLES.items():
        numbers = [
            [float(row[name]) for name in ("step", "mean", "deviation")]
            for row in rows
            if row["optimizer"] == optimizer
        ]
        steps, mean, deviation = np.array(numbers).T
        losses.plot(steps, mean, style, label=f"{optimizer}, {mean[-1]:.2f} at the end")
        losses.fill_between(steps, mean - deviation, mean + deviation, color=style[:2], alpha=0.2)
    losses.set(xlabel="optimizer step", ylabel="held-out loss (nats per byte)", ylim=(None, 3.0))
    losses.set_title("a decoder with 0.13M parameters, 3 seeds")
    losses.legend()
    cost = costs(readme.read_text())
    places = np.arange(len(COSTS))
    for i, name in enumerate(("optax.contrib.muon", "mimuon_jax.muon")):
        values = [cost[key][i] for key in COSTS]
        drawn = bars.bar(
            places + 0.4 * i - 0.2, values, width=0.4, label=name, color=("C7", "C0")[i]
        )
        bars.bar_label(drawn, [f"{value:,.0f}" for value in values])
    bars.set_xticks(places, list(COSTS.values()))
    bars.set(yscale="log", ylim=(1, 2e5), ylabel="per update, logarithmic")
    bars.set_title("one update of Qwen3-0.6B, sharded over 8 devices")
    bars.legend()
    for axes in (losses, bars):
        axes.grid(alpha=0.3, axis="y")
    figure.savefig(output, dpi=110)


def main() -> None:
    """Writes the picture, with `--runs` its numbers first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, help="folder of the runs, such as runs/speedrun/small")
    folder = parser.parse_args().runs
    if folder is not None:
        with CURVES.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for optimizer in STYLES:
                writer.writerows(read_runs(folder, optimizer))
    draw(CURVES, FOLDER.parent / "README.md", CURVES.with_suffix(".png"))


if __name__ == "__main__":
    main()
