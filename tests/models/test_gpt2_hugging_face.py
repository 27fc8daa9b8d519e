"""GPT-2 in Hugging Face folders: the weights of transformers give its logits, and come back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from models import gpt2
from models.gpt2.hugging_face import FIXED
from tests.models import make_gpt2_golden


@pytest.fixture
def golden(tmp_path):
    """A folder as transformers writes it, and the golden arrays of its model."""
    with np.load(make_gpt2_golden.GOLDEN) as file:
        arrays = {n.removeprefix("unusual/"): file[n] for n in file if n.startswith("unusual/")}
    weights = {n.removeprefix("params/"): x for n, x in arrays.items() if n.startswith("params/")}
    folder = tmp_path / "theirs"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    config = json.loads(str(arrays["config"])) | {"model_type": "gpt2", "attn_pdrop": 0.1}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, weights, arrays


def test_the_weights_of_transformers_give_its_logits_and_come_back(golden, tmp_path):
    folder, weights, arrays = golden
    model = gpt2.load(folder)
    logits = model(jnp.asarray(arrays["tokens"], jnp.int32))
    np.testing.assert_allclose(logits, arrays["logits"], atol=2e-4 * np.abs(arrays["logits"]).max())
    gpt2.save(model, tmp_path / "ours", end_of_text=3)
    again = load_file(tmp_path / "ours" / "model.safetensors")
    assert again.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(again[name], weight)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert (config["eos_token_id"], config["resid_pdrop"]) == (3, 0.0)
    assert gpt2.read_config(tmp_path / "ours") == gpt2.read_config(folder) == model.config


def test_published_folders_leave_out_the_prefix_and_hold_masks(golden):
    folder, weights, _ = golden
    short = {name.removeprefix("transformer."): x for name, x in weights.items()}
    short["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)
    save_file(short, folder / "model.safetensors")
    one = nnx.to_pure_dict(nnx.state(gpt2.load(folder)))
    assert jax.tree.leaves(one)[0].dtype == np.float32


@pytest.mark.parametrize("name", FIXED)
def test_what_is_not_built_is_refused(name, golden):
    folder, *_ = golden
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: "other"}))
    with pytest.raises(ValueError, match=f"config.json asks for {name}='other', which this GPT-2"):
        gpt2.load(folder)
