"""The README and the docs are true: Python blocks run, commands and links exist."""

import csv
import re
from pathlib import Path

import pytest

from benchmarks import accuracy

pytestmark = pytest.mark.standard_promotion

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
PYTHON = [text for language, text in BLOCKS if language == "python"]
TRAIN = "python3 -m pip install uv && python3 -m uv run python -m train lm"
TEST = "python3 -m pip install uv && python3 -m uv run pytest"


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.splitlines()[-1])
def test_python_blocks_run(block):
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_the_first_example_has_ten_lines():
    lines = [line for line in PYTHON[0].splitlines() if line.strip()]
    assert "optax.chain" in PYTHON[0]
    assert len(lines) == 10


def test_the_first_screen_has_exactly_two_commands():
    (commands, *_) = [text for language, text in BLOCKS if language == "sh"]
    lines = [line.partition("#")[0].strip() for line in commands.splitlines()]
    assert [line for line in lines if line] == [TRAIN, TEST]


def test_the_first_screen_says_what_its_numbers_say():
    rows = list(csv.DictReader((REPOSITORY / "docs" / "first_screen.csv").read_text().splitlines()))
    losses = {name: {} for name in ("AdamW", "Muon", "MiMuon", "NorMuon")}
    for row in rows:
        losses[row["optimizer"]][int(row["step"])] = float(row["mean"])
    goal = losses["AdamW"][200]
    reached = {name: min(k for k, x in of.items() if x <= goal) for name, of in losses.items()}
    assert reached == {"AdamW": 200, "NorMuon": 120, "Muon": 130, "MiMuon": 160}
    text = " ".join(README.split())
    assert "in 120 of 200 steps with NorMuon, 130 with Muon and 160 with MiMuon" in text
    assert f"{losses['MiMuon'][200]:.2f} against {losses['Muon'][200]:.2f} nats per byte" in text
    report = (REPOSITORY / "docs" / "results" / "speedrun" / "results.csv").read_text()
    assert [name for name, of in losses.items() if f"{of[200]:.4f} ± " not in report] == []
    for number in re.findall(r"(2,381|15,854 MB|453 MB)", text):
        assert text.count(number) == 2  # among the facts, and in the table that the picture shows


def test_continuous_integration_starts_with_the_readme_command(repository):
    script = (repository / ".ci" / "run").read_text().splitlines()
    commands = [line.strip() for line in script if "python3 -m" in line]
    assert commands[0] == TEST


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_links_lead_to_files_that_are_there(page):
    targets = re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_accuracy_page_is_what_its_program_writes_now():
    page = (REPOSITORY / "docs" / "accuracy.md").read_text()
    fixed = [line for line in accuracy.INTRODUCTION.splitlines() if "{" not in line]
    assert [line for line in fixed if line not in page] == []
    assert accuracy.POWERS in page
    assert f"| spectrum | {' | '.join(accuracy._powers())} |" in page
    rows = [f"| {method} | {dtype} |" for method, dtype in accuracy._methods()]
    assert [row for row in rows if row not in page] == []
