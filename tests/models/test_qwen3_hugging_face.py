"""Qwen3 from and to Hugging Face folders: every name, value, layout, and what is refused."""

import dataclasses
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import models.weights.writing
from models.qwen3 import (
    config_to_hugging_face,
    load,
    save,
)
from tests.models.qwen3_cases import (
    GOLDEN,
    NAMES,
    build,
    forward,
    golden,
    random_params,
)

UNTIED, TIED = "untied_ratio2", "tied_ratio4"


def tensors(name):
    """The arrays of a golden case under their Hugging Face names."""
    prefix = f"{name}/params/"
    with np.load(GOLDEN) as file:
        return {n.removeprefix(prefix): file[n] for n in file if n.startswith(prefix)}


def put(folder, name, **changed):
    """A folder as transformers writes it, with some tensors changed, or removed where None."""
    folder.mkdir()
    arrays = {n: x for n, x in (tensors(name) | changed).items() if x is not None}
    save_file(arrays, folder / "model.safetensors")
    config = config_to_hugging_face(golden(name)["config"])
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def params(model):
    """Parameters as nested dicts."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_becomes_the_model_and_the_model_the_folder(tmp_path, name):
    model = load(put(tmp_path / "in", name))
    assert model.config == golden(name)["config"]
    jax.tree.map(np.testing.assert_array_equal, params(model), golden(name)["params"])
    save(model, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == tensors(name).keys()
    for key, array in tensors(name).items():
        assert written[key].dtype == array.dtype
        np.testing.assert_array_equal(written[key], array)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses a file without it


def test_a_loaded_model_computes_the_same_as_one_that_was_built(tmp_path):
    case = golden(UNTIED)
    logits = forward(load(put(tmp_path / "in", UNTIED)), case["tokens"])
    built = build(case["config"], case["params"])
    np.testing.assert_array_equal(logits, forward(built, case["tokens"]))


def test_several_files_hold_what_one_does(tmp_path):
    model = load(put(tmp_path / "in", UNTIED))
    save(model, tmp_path / "out", shard_bytes=4000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{i:05}-of-00007.safetensors" for i in range(1, 8)]
    assert all((tmp_path / "out" / file).stat().st_size < 6000 for file in files)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors(UNTIED).keys()
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors(UNTIED).values())
    again = load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, params(again), params(model))
    (tmp_path / "out" / files[2]).unlink()
    (tmp_path / "out" / files[3]).unlink()
    with pytest.raises(ValueError, match=f"lacks {files[2]}, {files[3]}, which"):
        load(tmp_path / "out")


def test_a_dtype_changes_when_asked_to_and_only_then(tmp_path):
    single = load(put(tmp_path / "single", TIED))
    save(single, tmp_path / "half", dtype="bfloat16")
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    kept, widened = load(tmp_path / "half"), load(tmp_path / "half", param_dtype="float32")
    narrowed = load(tmp_path / "single", param_dtype="bfloat16")
    for model, dtype in ((single, "float32"), (kept, "bfloat16"), (widened, "float32")):
        assert {leaf.dtype for leaf in jax.tree.leaves(params(model))} == {jnp.dtype(dtype)}
    jax.tree.map(np.testing.assert_array_equal, params(kept), params(narrowed))
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params(single))
    jax.tree.map(np.testing.assert_array_equal, params(widened), rounded)
    assert load(tmp_path / "half", dtype="bfloat16").dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="cannot be cast to int32; use a float, or None"):
        load(tmp_path / "half", param_dtype="int32")
    with pytest.raises(ValueError, match="cannot be cast to int8"):
        save(single, tmp_path / "integers", dtype="int8")


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
def test_every_device_reads_its_own_part(tmp_path, axis_type, monkeypatch):
    mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(axis_type,) * 2)

    def layout(params):
        def of(path, leaf):
            names = jax.tree_util.keystr(path)
            spec = PartitionSpec(None, "fsdp", "tensor") if leaf.ndim == 3 else PartitionSpec()
            if "query" in names and leaf.ndim == 3:
                spec = PartitionSpec(None, None, ("tensor", "fsdp"))
            return NamedSharding(mesh, spec)

        return jax.tree_util.tree_map_with_path(of, params)

    parts = []
    make = jax.make_array_from_callback

    def watch(shape, sharding, part):
        def watched(index):
            parts.append((shape, part(index).shape))
            return part(index)

        return make(shape, sharding, watched)

    monkeypatch.setattr(jax, "make_array_from_callback", watch)
    model = load(put(tmp_path / "in", UNTIED), shardings=layout)
    jax.tree.map(np.testing.assert_array_equal, params(model), golden(UNTIED)["params"])
    for leaf, sharding in zip(
        jax.tree.leaves(params(model)), jax.tree.leaves(layout(params(model))), strict=True
    ):
        assert leaf.sharding == sharding
    assert {np.prod(part) / np.prod(shape) for shape, part in parts if len(shape) == 3} == {1 / 4}


def test_a_layout_has_a_sharding_for_every_parameter(tmp_path):
    folder = put(tmp_path / "in", TIED)
    alone = jax.sharding.SingleDeviceSharding(jax.devices()[3])

    def incomplete(params):
        tree = jax.tree.map(lambda _: alone, params)
        return tree | {"embed": {"embedding": PartitionSpec("fsdp")}, "head": alone}

    with pytest.raises(ValueError, match=r"or one too many: embed/embedding, head; return a tree"):
        load(folder, shardings=incomplete)


def test_a_tied_head_may_be_stored_twice_if_it_is_the_same(tmp_path):
    embedding = tensors(TIED)["model.embed_tokens.weight"]
    model = load(put(tmp_path / "same", TIED, **{"lm_head.weight": embedding}))
    jax.tree.map(np.testing.assert_array_equal, params(model), golden(TIED)["params"])
    other = embedding.copy()
    other[-1, -1] += 1
    folder = put(tmp_path / "other", TIED, **{"lm_head.weight": other})
    with pytest.raises(
        ValueError, match=r"lm_head.weight is not a copy of model.embed_tokens.weight"
    ):
        load(folder)


def test_the_first_names_that_differ_are_listed(tmp_path):
    folder = put(
        tmp_path / "in",
        UNTIED,
        **{
            "model.layers.1.mlp.up_proj.weight": None,
            "lm_head.weight": None,
            "model.layers.3.mlp.up_proj.weight": np.zeros((20, 12), np.float32),
            "model.layers.0.self_attn.q_proj.bias": np.zeros(24, np.float32),
            "model.layers.2.self_attn.q_proj.weight": np.zeros((12, 24), np.float32),
        },
    )
    with pytest.raises(ValueError, match=r"not those of its config.json") as error:
        load(folder)
    assert re.findall(
        r"[\w.]+ (?:is missing|has no parameter|is \[.*?\] .*?\])", str(error.value)
    ) == [
        "model.layers.1.mlp.up_proj.weight is missing",
        "lm_head.weight is missing",
        "model.layers.0.self_attn.q_proj.bias has no parameter",
    ]
    assert str(error.value).endswith("; and 2 more")


def test_layers_of_several_dtypes_are_read_only_with_a_cast(tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    changed = {name: tensors(TIED)[name].astype(np.float16)}
    folder = put(tmp_path / "in", TIED, **changed)
    with pytest.raises(ValueError, match=r"layer}.mlp.up_proj.weight is stored as F16, F32; one"):
        load(folder)
    assert load(folder, param_dtype="float32").layers.mlp.up.kernel.dtype == jnp.float32
    folder = put(tmp_path / "integers", TIED, **{name: tensors(TIED)[name].astype(np.int8)})
    with pytest.raises(ValueError, match="is stored as F32, I8"):
        load(folder, param_dtype="float32")


def test_folders_without_a_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config.json cannot be read as a JSON object"):
        load(tmp_path)
    folder = put(tmp_path / "in", TIED)
    weights = folder / "model.safetensors"
    os.mkfifo(tmp_path / "config.json")  # which would be waited for
    with pytest.raises(ValueError, match=r"config.json is not a file"):
        load(tmp_path)
    whole = weights.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        weights.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model.safetensors is damaged or truncated"):
            load(folder)
    weights.unlink()
    with pytest.raises(ValueError, match=r"has neither model.safetensors nor .*index.json; use"):
        load(folder)


def test_an_export_is_complete_or_not_there(tmp_path, monkeypatch):
    model = load(put(tmp_path / "in", TIED))
    with pytest.raises(ValueError, match=f"{tmp_path / 'in'} exists; name a folder that does not"):
        save(model, tmp_path / "in")

    def full(*arguments, **settings):
        raise OSError("no space left on device")

    monkeypatch.setattr(models.weights.writing, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        save(model, tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_the_end_of_a_text_is_written_for_transformers(tmp_path):
    model = load(put(tmp_path / "in", TIED))
    save(model, tmp_path / "out", end_of_text=3, files={"tokenizer.json": "ü"})
    special = {"bos_token_id": 3, "eos_token_id": 3}
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: written[name] for name in special} == special
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == special
    assert (tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8") == "ü"
    assert load(tmp_path / "out").config == model.config
    save(model, tmp_path / "plain")
    assert not special.keys() & json.loads((tmp_path / "plain" / "config.json").read_text()).keys()


def test_names_without_the_prefix_and_idle_tensors_are_read(tmp_path):
    arrays = tensors(TIED)
    for name, changed in (
        ("short", {n.removeprefix("model."): x for n, x in arrays.items()}),
        ("idle", arrays | {"model.rotary_emb.inv_freq": np.zeros(4, np.float32)}),
        (
            "layers",
            arrays | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)
            for i in range(2)},
        ),
    ):  # fmt: skip
        folder = put(tmp_path / name, TIED)
        save_file(changed, folder / "model.safetensors")
        jax.tree.map(np.testing.assert_array_equal, params(load(folder)), golden(TIED)["params"])
    arrays = {n.removeprefix("model."): x for n, x in tensors(UNTIED).items()}
    save_file(arrays, put(tmp_path / "head", UNTIED) / "model.safetensors")
    loaded = params(load(tmp_path / "head"))
    jax.tree.map(np.testing.assert_array_equal, loaded, golden(UNTIED)["params"])


def test_biases_are_read_and_written(tmp_path):
    config = dataclasses.replace(golden(TIED)["config"], attention_bias=True)
    model = build(config, random_params(config))
    save(model, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(name.endswith("proj.bias") for name in written) == 4 * config.num_hidden_layers
    again = load(tmp_path / "out")
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, params(again), params(model))
