"""The metrics for TensorBoard: `tensorboard --logdir RUN_DIR`."""

from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter


class TensorBoard:
    """Writes scalars named `train/loss`, `validation/loss` and so on."""

    def __init__(self, folder: Path, *, step: int) -> None:
        """Opens the folder; every start of the run adds a file to it.

        Args:
            folder: created if it is missing.
            step: the step that the run resumes from. TensorBoard is told to drop later points of
                an earlier process, so that each point is shown once.
        """
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else 0)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def sync(self) -> None:
        """Hands everything to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
