"""Training programs: tasks, data, mesh, loop, checkpoints, presets, command line.

`run(config)` trains; `python -m train` is the same from a command line.
"""

from train.config import Config
from train.errors import BadInput, TrainingStopped
from train.loop import run
from train.run_directory import Result

__all__ = ["BadInput", "Config", "Result", "TrainingStopped", "run"]
