"""Qwen3 folders that transformers reads and writes: the same model on both sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.qwen3 import load, save
from tests.models.make_qwen3_golden import COMMON
from tests.models.qwen3_cases import NAMES, build, forward, golden, relative_error

OF = "original_max_position_embeddings"


def params(model):
    """Parameters as nested dicts."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@pytest.mark.parity
@pytest.mark.parametrize("shard_bytes", [10**9, 2000])
@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_and_writes_the_same_model(tmp_path, name, shard_bytes):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    case = golden(name)
    ours = build(case["config"], case["params"])
    save(ours, tmp_path / "ours", shard_bytes=shard_bytes)
    theirs, loading = transformers.Qwen3ForCausalLM.from_pretrained(
        tmp_path / "ours", dtype="auto", output_loading_info=True
    )
    assert not any(loading.values()), loading
    with torch.no_grad():
        logits = theirs.eval()(torch.tensor(np.asarray(case["tokens"]))).logits.numpy()
    assert relative_error(logits, case["logits"]) < 1e-5
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard_bytes)
    again = load(tmp_path / "theirs")
    assert again.config == case["config"]
    jax.tree.map(np.testing.assert_array_equal, params(again), params(ours))
    assert relative_error(forward(again, case["tokens"]), logits) < 1e-5


SCALED = {
    "yarn": {"rope_type": "yarn", "factor": 4.0, OF: 8, "beta_fast": 2.0, "beta_slow": 0.25},
    "yarn, ends not rounded": {"rope_type": "yarn", "factor": 2.0, OF: 16, "truncate": False},
    "yarn, scales": {
        "rope_type": "yarn",
        "factor": 4.0,
        OF: 8,
        "mscale": 0.7,
        "mscale_all_dim": 0.4,
    },
    "linear": {"rope_type": "linear", "factor": 3.0},
}


@pytest.mark.parity
@pytest.mark.parametrize("rotation", SCALED.values(), ids=SCALED)
def test_transformers_computes_the_same_with_scaled_rotation_and_biases(tmp_path, rotation):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = COMMON | {"num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8}
    theirs = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            **sizes, attention_bias=True, rope_parameters={**rotation, "rope_theta": 100.0}
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.uniform_(-0.5, 1.0)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    assert ours.config.attention_bias
    tokens = np.random.default_rng(0).integers(sizes["vocab_size"], size=(2, 24))
    with torch.no_grad():
        logits = theirs(torch.tensor(tokens)).logits.numpy()
    assert relative_error(forward(ours, jnp.asarray(tokens)), logits) < 1e-5
    save(ours, tmp_path / "ours")
    again = transformers.Qwen3ForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto").eval()
    with torch.no_grad():
        assert relative_error(again(torch.tensor(tokens)).logits.numpy(), logits) < 1e-5
