"""Published shards of tokens: their format, their order, and training on them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.nanogpt import NanoGPTConfig
from train.data.language import load
from train.data.text import TextData
from train.data.token_shards import Beginning, Shards, open_shards, write_shard
from train.errors import BadInput
from train.mesh import make_mesh
from train.tasks.language_model import LanguageModel, Sample


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two training shards and one of validation."""
    numbers = np.random.default_rng(0).integers(0, 50257, 260)
    write_shard(tmp_path / "fineweb_train_000001.bin", numbers[:100])
    write_shard(tmp_path / "fineweb_train_000002.bin", numbers[100:200])
    write_shard(tmp_path / "fineweb_val_000000.bin", numbers[200:])
    return tmp_path


def test_the_format_is_the_published_one(tmp_path: Path):
    header = np.zeros(256, np.int32)
    header[:3] = 20240520, 1, 3
    path = tmp_path / "train.bin"
    path.write_bytes(header.tobytes() + np.asarray([7, 50256, 65535], np.uint16).tobytes())
    assert Shards([path])[:].tolist() == [7, 50256, 65535]
    write_shard(tmp_path / "again.bin", [7, 50256, 65535])
    assert (tmp_path / "again.bin").read_bytes() == path.read_bytes()


def test_slices_across_shards(folder: Path):
    numbers = np.random.default_rng(0).integers(0, 50257, 260)
    training, held_out = open_shards(folder)
    assert (training.size, held_out.size) == (200, 60)
    for part in (slice(0, 5), slice(95, 105), slice(99, 100), slice(100, 101), slice(0, 200)):
        np.testing.assert_array_equal(training[part], numbers[:200][part])
    assert len(training[200:210]) == 0
    assert Beginning(training, 150)[140:170].tolist() == numbers[140:150].tolist()


def test_windows_are_in_order_and_every_seed_sees_the_same(
    folder: Path, small: Callable[..., LanguageModel]
):
    data = TextData(source="shards", path=folder, sequence_length=16, evaluation_sequences=None)
    numbers = np.random.default_rng(0).integers(0, 50257, 260)
    loaded = load(data, vocab_size=50304)
    np.testing.assert_array_equal(loaded.training[1], numbers[16:33])
    model = NanoGPTConfig(vocab_size=50304, n_embd=8, n_layer=1, n_head=2)
    config = small(folder / "run", model=model, data=data, batch_size=2, seed=5)
    config = dataclasses.replace(config, sample=Sample(prompt="464", length=2))
    task = config.task(make_mesh("data=1"))
    np.testing.assert_array_equal(task.batches[1], [numbers[32:49], numbers[48:65]])
    assert (task.unit, task.loss_unit) == ("tokens", "nats/token")
    with pytest.raises(BadInput, match=r"model.vocab_size=300 is less than the 50257 tokens"):
        load(data, vocab_size=300)


def test_files_that_are_not_shards(folder: Path):
    cut = folder / "fineweb_val_000000.bin"
    cut.write_bytes(cut.read_bytes()[:-2])
    with pytest.raises(BadInput, match=r"states 60 tokens and holds 59: it is cut off"):
        open_shards(folder)
    cut.write_bytes(b"text")
    with pytest.raises(BadInput, match="is not a shard of tokens"):
        open_shards(folder)
    cut.unlink()
    with pytest.raises(BadInput, match="holds no shard of val tokens"):
        open_shards(folder)
    with pytest.raises(BadInput, match=r"needs --data\.path"):
        open_shards(None)
