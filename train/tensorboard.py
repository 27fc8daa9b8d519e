"""The metrics for TensorBoard: `tensorboard --logdir RUN_DIR`."""

import contextlib
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import RecordWriter

from train.files import writing


class TensorBoard:
    """Writes scalars named `train/loss`, `validation/loss` and so on.

    Records are written directly: the library's `SummaryWriter` writes in a thread, which prints a
    traceback on a full disk and goes on, and it warns of every NaN.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        """Opens the folder; every start of the run adds a file to it.

        Args:
            folder: created if it is missing.
            step: the step that the run resumes from. TensorBoard is told to drop later points of
                an earlier process, so that each point is shown once.
        """
        self._folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = RecordWriter(str(folder / _file_name(folder)))
        with contextlib.ExitStack() as failed:
            failed.callback(self._writer.close)
            self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
            start = SessionLog(status=SessionLog.START)
            first = step + 1 if step else 0
            self._add(Event(wall_time=time.time(), step=first, session_log=start))
            failed.pop_all()

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step."""
        values = [Summary.Value(tag=f"{split}/{k}", simple_value=x) for k, x in metrics.items()]
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def sync(self) -> None:
        """Returns when everything is on disk."""
        with writing(self._folder):
            self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        with writing(self._folder):
            self._writer.close()

    def _add(self, event: Event) -> None:
        """Appends an event."""
        with writing(self._folder):
            self._writer.write(event.SerializeToString())


def _file_name(folder: Path) -> str:
    """A name after all others in the folder, since TensorBoard reads files in order of their names.

    It has the time in seconds, which two starts may share, and which a clock may set back.
    """
    names = (re.match(r"events\.out\.tfevents\.(\d{10})\.", p.name) for p in folder.iterdir())
    last = max((int(name[1]) for name in names if name), default=0)
    return f"events.out.tfevents.{max(int(time.time()), last + 1):010}.{socket.gethostname()}"
