"""A configuration small enough to train many times."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from models.qwen3 import tiny
from train.data.text import TextData
from train.optimizers import AdamW
from train.tasks.language_model import LanguageModel, Sample


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About six thousand bytes of text."""
    path = tmp_path_factory.mktemp("text") / "squares.txt"
    path.write_text("".join(f"the square of {i} is {i * i}\n" for i in range(250)))
    return path


@pytest.fixture(scope="session")
def small(text_file: Path) -> Callable[..., LanguageModel]:
    """Makes a configuration of six steps, evaluated and saved after every second one."""

    def make(run_dir: Path, **fields: object) -> LanguageModel:
        model = dataclasses.replace(
            tiny(),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
        config = LanguageModel(
            preset="small",
            run_dir=run_dir,
            steps=6,
            batch_size=8,
            evaluate_every=2,
            mesh="data=1",
            optimizer=AdamW(learning_rate=1e-2),
            data=TextData(path=text_file, sequence_length=16),
            model=model,
            sample=Sample(length=8),
        )
        return dataclasses.replace(config, **fields)

    return make
