"""`evaluate` and `sample` beside a run that trains and removes its old checkpoints."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from train import cli
from train.checkpoint_folder import steps

pytestmark = [pytest.mark.slow, pytest.mark.standard_promotion]

CALLS = 40

# A checkpoint after every step, of which only the newest and the best are kept.
OPTIONS = (
    "lm --steps 1000000 --batch-size 1 --evaluate-every 1 --keep-checkpoints 1 --mesh data=1 "
    "--data.sequence-length 8 --data.evaluation-sequences 1 --model.hidden-size 8 "
    "--model.intermediate-size 8 --model.num-hidden-layers 1 --model.num-attention-heads 1 "
    "--model.num-key-value-heads 1 --model.head-dim 8 --sample.length 1"
)


@pytest.fixture
def live(text_file: Path, tmp_path: Path, repository: Path) -> Iterator[Path]:
    """The directory of a run that trains in another process."""
    words = [*OPTIONS.split(), "--data.path", str(text_file), "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(
        [sys.executable, "-m", "train", *words],
        cwd=repository,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            deadline = time.monotonic() + 600
            while not steps(tmp_path / "run" / "checkpoints"):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield tmp_path / "run"
            assert process.poll() is None, "the run ended before the calls"
        finally:
            process.kill()


def test_no_call_beside_a_run_fails(live: Path, capsys: pytest.CaptureFixture[str]):
    first = steps(live / "checkpoints")[-1]
    for call in range(CALLS):
        which = ["newest", "best"][call // 2 % 2]
        words = [["evaluate", "--mesh=data=1", "--batch-size=1"], ["sample"]][call % 2]
        code = cli.main([words[0], str(live), "--checkpoint", which, *words[1:]])
        assert (code, capsys.readouterr().err) == (0, "")
    assert steps(live / "checkpoints")[-1] - first > CALLS  # the run removed many meanwhile
