"""The language-model task: its loss on packed rows, its metrics, its vocabulary."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import P

from models import gpt2
from models.qwen3 import Qwen3
from train import cli, loop
from train.config_json import from_json, to_json
from train.data.text import TextData
from train.data.tokenizers import load_tokenizer, train_bpe
from train.errors import BadInput
from train.loop import run
from train.mesh import make_mesh, tree_shardings
from train.metrics import read_metrics
from train.task import split_batch
from train.tasks.language_model import LanguageModel, Sample, sample_text

pytestmark = pytest.mark.standard_promotion

Make = Callable[..., LanguageModel]


@pytest.fixture
def subwords(small: Make, text_file: Path, tmp_path: Path) -> Callable[..., LanguageModel]:
    """Makes a configuration with a learned vocabulary of 300 tokens; data fields by keyword."""

    def make(run_dir: Path, *, vocab_size: int = 300, **fields: Any) -> LanguageModel:
        config = small(run_dir)
        return dataclasses.replace(
            config,
            data=TextData(
                path=text_file,
                tokenizer="bpe",
                sequence_length=16,
                cache=tmp_path / "cache",
                **fields,
            ),
            model=dataclasses.replace(config.model, vocab_size=vocab_size),
        )

    return make


@pytest.mark.slow
def test_packed_documents_are_trained_on_as_if_they_were_alone(
    small: Make, tmp_path: Path, text_file: Path
):
    folder = tmp_path / "books"
    folder.mkdir()
    for i in range(64):
        (folder / f"{i:02}.txt").write_text(f"book {i:02}")  # 7 bytes, preceded by 2
    config = small(
        tmp_path / "run",
        data=TextData(
            path=folder,
            validation=text_file,
            packing=True,
            sequence_length=18,
            cache=tmp_path / "cache",
        ),
    )
    task = config.task(make_mesh("data=1"))
    params, model_state = jax.jit(task.init)(jax.random.key(0))
    batch: Any = task.batches[0]
    assert {name: x.shape for name, x in batch.items()} == {
        "tokens": (8, 19),
        "segment_ids": (8, 18),
        "positions": (8, 18),
    }
    loss = jax.jit(task.loss)
    key, step = jax.random.key(0), jnp.int32(0)
    packed, _ = loss(params, model_state, batch, key, step)
    model = nnx.eval_shape(lambda: Qwen3(config.model, rngs=nnx.Rngs(0)))
    graph, _, _ = nnx.split(model, nnx.Param, ...)
    tokens = jnp.asarray(batch["tokens"], jnp.int32)
    alone = jnp.concatenate([tokens[:, :9], tokens[:, 9:18]])
    targets = jnp.concatenate([tokens[:, 1:10], tokens[:, 10:19]])
    logits = jax.jit(lambda x: nnx.merge(graph, params, model_state)(x))(alone)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
    np.testing.assert_allclose(packed, expected, rtol=1e-6)
    unmasked = {**batch, "segment_ids": np.zeros_like(batch["segment_ids"])}
    joined, _ = loss(params, model_state, unmasked, key, step)
    assert abs(joined - packed) > 1e-5 * packed


@pytest.mark.slow
def test_evaluations_are_reported_by_token_byte_and_word(subwords: Make, tmp_path: Path):
    config = subwords(tmp_path, evaluation_sequences=None)
    task = config.task(make_mesh("data=1"))
    metrics = task.evaluate(*jax.jit(task.init)(jax.random.key(0)))
    assert metrics["loss"] == pytest.approx(math.log(300), abs=0.1)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    text = config.data.path.read_text()  # pyright: ignore[reportOptionalMemberAccess]
    held_out = text[len(text) - round(0.05 * len(text)) :]
    tokenizer = load_tokenizer(next((tmp_path / "cache").glob("bpe-*")))
    nats = metrics["loss"] * (1 + len(tokenizer.encode(held_out)))
    words = len(held_out.split()) + held_out.count("\n")
    assert metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(held_out))
    assert metrics["word_perplexity"] == pytest.approx(math.exp(nats / words))


def test_the_vocabulary_has_to_fit(subwords: Make, small: Make, tmp_path: Path):
    task = subwords(tmp_path).task(make_mesh("data=1"))
    assert list(task.files) == ["tokenizer.json"]
    assert task.unit == "tokens"
    assert task.loss_unit == "nats/token"
    assert json.loads(task.files["tokenizer.json"])["model"]["type"] == "BPE"
    with pytest.raises(BadInput, match=r"model\.vocab_size=300 must be 256: tokens are bytes"):
        subwords(tmp_path).__class__(
            preset="x", model=dataclasses.replace(small(tmp_path).model, vocab_size=300)
        )


def test_attention_by_cudnn_needs_whole_heads_a_gpu_and_16_bits(small: Make, tmp_path: Path):
    config = small(tmp_path, compute_dtype="bfloat16")  # one key head
    for spec, expected in (("data=2", "auto"), ("tensor=2", "xla")):
        graph, init = config.architecture(make_mesh(spec))
        model = nnx.merge(graph, *jax.eval_shape(init, jax.random.key(0)))
        assert model.attention == expected
    chosen = dataclasses.replace(config, attention="cudnn")
    assert chosen.reopened(tmp_path).attention == "auto"
    with pytest.raises(
        BadInput, match=r"needs an NVIDIA GPU.*here are 1 on a cpu; use --attention"
    ):
        chosen.architecture(make_mesh("data=1"))
    with pytest.raises(
        BadInput, match=r"attention=cudnn computes in 16 bits.*=float32; use --comp"
    ):
        dataclasses.replace(chosen, compute_dtype="float32")


def test_a_mismatch_is_one_line_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = f"--run-dir {tmp_path / 'run'} --data.cache {tmp_path / 'cache'}".split()
    assert cli.main(["lm", "--data.tokenizer", "bpe", *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: model.vocab_size=256 is too small for --data.tokenizer bpe")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_sample_goes_on_from_its_prompt(small: Make, tmp_path: Path):
    tokenizer = train_bpe(["the"], vocab_size=257)
    # Larger than the tokenizer: sampled tokens beyond it are omitted from the text.
    config = dataclasses.replace(small(tmp_path).model, vocab_size=2 * tokenizer.vocab_size)
    model = Qwen3(config, rngs=nnx.Rngs(0))
    text = sample_text(model, tokenizer, Sample(prompt="thé ", length=8), seed=0)
    assert text.startswith("thé ")
    assert text == sample_text(model, tokenizer, Sample(prompt="thé ", length=8), seed=0)


@pytest.mark.slow
def test_a_run_on_packed_subwords_goes_on_bit_for_bit(
    subwords: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def config(name: str) -> LanguageModel:
        made = subwords(tmp_path / name, packing=True)
        return dataclasses.replace(made, compute_dtype="bfloat16", remat=True)

    def interrupt(batch: Any, sharding: Any) -> Any:
        seen.append(None)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return split_batch(batch, sharding)

    # Lowering a bfloat16 product inside of jax.checkpoint compares its dtypes by promotion.
    with jax.numpy_dtype_promotion("standard"):
        run(config("whole"), quiet=True)
    seen: list[None] = []
    monkeypatch.setattr(loop, "split_batch", interrupt)
    with pytest.raises(KeyboardInterrupt), jax.numpy_dtype_promotion("standard"):
        run(config("parts"), quiet=True)
    monkeypatch.undo()
    (tmp_path / "parts" / "tokenizer.json").unlink()
    (tmp_path / "cache").rename(tmp_path / "moved")
    resumed = config("parts")
    moved = dataclasses.replace(resumed.data, cache=tmp_path / "moved")
    with jax.numpy_dtype_promotion("standard"):
        run(dataclasses.replace(resumed, data=moved), quiet=True)
    lines = [
        [{**line, "wall": None} for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "parts")
    ]
    assert lines[0] == lines[1]
    learned = next((tmp_path / "moved").glob("bpe-*/tokenizer.json")).read_text()
    for name in ("whole", "parts"):
        assert (tmp_path / name / "tokenizer.json").read_text() == learned


@pytest.mark.slow
def test_gpt_2_is_trained_with_its_fused_matrices_named(small: Make, tmp_path: Path):
    model = dataclasses.replace(gpt2.tiny(), n_embd=16, n_layer=2, n_head=2, n_positions=32)
    config = dataclasses.replace(small(tmp_path), model=model)
    assert from_json(LanguageModel, to_json(config)) == config
    task = config.task(make_mesh("data=1"))
    assert task.split == {"query_key_value/kernel": (16, 16, 16)}
    params, model_state = jax.jit(task.init)(jax.random.key(0))
    layout = tree_shardings(params, task.sharding_rules, make_mesh("fsdp=2,tensor=2"))
    assert layout["layers"]["mlp"]["up"]["kernel"].spec == P(None, "fsdp", "tensor")
    loss, _ = jax.jit(task.loss)(
        params, model_state, task.batches[0], jax.random.key(0), jnp.int32(0)
    )
    assert loss == pytest.approx(math.log(256), abs=0.1)


def test_rows_longer_than_a_model_has_positions_are_refused(small: Make, tmp_path: Path):
    config = dataclasses.replace(small(tmp_path), model=gpt2.tiny())
    with pytest.raises(BadInput, match=r"sequence_length=300 is more than the 256 positions"):
        dataclasses.replace(config, data=dataclasses.replace(config.data, sequence_length=300))
    long = dataclasses.replace(config, sample=Sample(length=255))
    with pytest.raises(BadInput, match=r"the prompt are 260 tokens, more than the 256 positions"):
        long.task(make_mesh("data=1"))
