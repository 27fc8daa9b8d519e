"""The progress of a run: a live bar on a terminal, plain lines otherwise."""

import errno
import os
import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

_SECONDS_BETWEEN_LINES = 10.0


class _Output(Console):
    """A console whose reader may go away; what it prints after that is dropped."""

    lost = False

    def on_broken_pipe(self) -> None:  # called by rich, whose own method exits the program
        self.quiet = self.lost = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Reporter:
    """Shows loss, throughput, gate rate and time left, or only warnings if quiet."""

    def __init__(self, steps: int, *, unit: str, loss_unit: str, quiet: bool = False) -> None:
        """Prepares the display.

        Args:
            steps: length of the whole run.
            unit: what throughput counts, such as "bytes".
            loss_unit: unit of the loss, such as "nats/byte".
            quiet: show only warnings.
        """
        self._steps, self._unit, self._loss_unit, self._quiet = steps, unit, loss_unit, quiet
        self._console = _Output(highlight=False)
        counter = f"step {steps}/{steps}"
        columns = (
            TextColumn("step {task.completed}/{task.total}", table_column=_whole(len(counter))),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=_whole(len("00:00"))),
            TextColumn("left", table_column=_whole(len("left"))),
        )
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._live = self._console.is_terminal and not quiet
        self._task = None
        self._last_line = -float("inf")

    def __enter__(self) -> Self:
        if self._live:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:  # a stopped bar prints an empty line
            self._bar.stop()

    @property
    def lost(self) -> bool:
        """Whether nobody reads the output any more."""
        return self._console.lost

    def line(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if not self._quiet:
            try:
                self._console.print(text, markup=False, soft_wrap=True)
            except OSError as error:
                if error.errno != errno.EIO:  # a terminal that is gone
                    raise
                self._console.on_broken_pipe()

    def warn(self, text: str) -> None:
        """Prints a warning to standard error."""
        if self._live:
            self._console.print(f"warning: {text}", markup=False, soft_wrap=True)
        else:
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def step(self, step: int, metrics: dict[str, float], *, rate: float, mfu: float | None) -> None:
        """Shows a training step.

        Args:
            step: steps done.
            metrics: `loss`; `gate_rate`, if there is a gate; `skipped`, the number of consecutive
                skipped steps.
            rate: throughput, in units per second.
            mfu: model FLOPs utilization, 0 .. 1, if the peak of the devices is known.
        """
        parts = [f"loss {metrics['loss']:.3f} {self._loss_unit}"]
        skipped = int(metrics.get("skipped", 0))
        parts += [f"skipped {skipped} {'steps' if skipped > 1 else 'step'}"] if skipped else []
        parts += [f"gate {metrics['gate_rate']:.0%}"] if "gate_rate" in metrics else []
        parts += [f"{rate:,.0f} {self._unit}/s"]
        parts += [f"MFU {mfu:.0%}"] if mfu is not None else []
        text = ", ".join(parts)
        if self._live:
            if self._task is None:
                self._task = self._bar.add_task(text, total=self._steps, completed=step)
            self._bar.update(self._task, completed=step, description=text)
        elif step == self._steps or time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.line(f"step {step}/{self._steps}: {text}")

    def validation(self, step: int, loss: float) -> None:
        """Shows an evaluation on the held-out split."""
        self.line(f"step {step}/{self._steps}: validation loss {loss:.4f} {self._loss_unit}")


def _whole(width: int) -> Column:
    """A column that a narrow terminal does not shorten."""
    return Column(no_wrap=True, min_width=width)
