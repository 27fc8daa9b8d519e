"""Published shards of tokens: their format, their order, and training on them."""

import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_files_of_other_names_are_left_out_and_counted(folder: Path):
    (folder / "._fineweb_train_000001.bin").write_bytes(b"of macOS")
    (folder / "extra.bin").write_bytes(b"x")
    (folder / "fineweb_train_000003.bin").touch()
    (folder / "README.md").write_text("read me")
    (folder / "again_train.bin").symlink_to("fineweb_train_000001.bin")
    notes: list[str] = []
    training, _ = open_shards(folder, note=notes.append)
    assert training.size == 200
    (said,) = notes
    assert said == (
        f"data.path={folder}: 4 files left out: 1 of another type (first: README.md), "
        "1 read already under another name (first: again_train.bin), "
        "1 empty (first: fineweb_train_000003.bin), "
        "1 without train or val in the name (first: extra.bin)"
    )
    (folder / "trainval.bin").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"trainval\.bin has both train and val in its name"):
        open_shards(folder)


# What a generated folder is made of. A damaged shard is refused by name.
PLACES = ("", "deep", "deep/er", ".git", "__MACOSX")
NAMES = ("a_train_1.bin", "B_TRAIN_2.BIN", "c_val_0.bin", "D.Val.Bin", "._a_train_1.bin",
         "other.bin", "a_train_1.bin.part", "train.txt", "Thumbs.db")  # fmt: skip
STATES = ("good",) * 6 + ("empty", "cut", "text")


def slow_shards(folder: Path) -> tuple[dict[str, list[int]], set[Path]]:
    """Tokens of each part, and files that are damaged, by every file's name and content."""
    found: dict[str, list[int]] = {"train": [], "val": []}
    damaged = set()
    files = [
        Path(where, name) for where, _, names in os.walk(folder, followlinks=True) for name in names
    ]
    for file in sorted(files, key=lambda file: file.relative_to(folder).parts):
        parts, name = file.relative_to(folder).parts, file.name.lower()
        if any(p.startswith(".") or p in ("__MACOSX", "Thumbs.db") for p in parts):
            continue
        data = file.read_bytes()
        if not name.endswith(".bin") or not data or ("train" in name) == ("val" in name):
            continue
        header = np.frombuffer(data[:1024].ljust(1024, b"\0"), "<i4")
        tokens = np.frombuffer(data[1024:], "<u2")
        if header[:2].tolist() != [20240520, 1] or len(tokens) < header[2]:
            damaged.add(file)
        found["train" if "train" in name else "val"] += tokens.tolist()
    return found, damaged


@settings(max_examples=100)
@given(
    files=st.dictionaries(
        st.tuples(st.sampled_from(PLACES), st.sampled_from(NAMES)), st.sampled_from(STATES)
    ),
    linked=st.sampled_from(["", "deep", "deep/er"]),
)
def test_generated_folders_are_read_as_by_the_slow_rule(
    files: dict[tuple[str, str], str], linked: str
):
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "shards"
        for place in PLACES:
            (root / place).mkdir(parents=True, exist_ok=True)
        present = {("", "z_train.bin"): "good", ("", "z_val.bin"): "good"} | files
        for number, ((place, name), state) in enumerate(present.items()):
            file = root / place / name
            write_shard(file, range(100 * number, 100 * number + 3))
            data = file.read_bytes()
            contents = {"good": data, "empty": b"", "cut": data[:-2], "text": b"train"}
            file.write_bytes(contents[state])
        if linked:
            (root / linked).rename(Path(temporary) / "elsewhere")
            (root / linked).symlink_to(Path(temporary) / "elsewhere")
        expected, damaged = slow_shards(root)
        (root / "again").symlink_to(root)  # a cycle, which the slow rule would follow without end
        if damaged:
            with pytest.raises(BadInput, match="|".join(str(file) for file in damaged)):
                open_shards(root, note=lambda _: None)
            return
        training, held_out = open_shards(root, note=lambda _: None)
        assert training[:].tolist() == expected["train"]
        assert held_out[:].tolist() == expected["val"]
