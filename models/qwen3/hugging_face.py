"""Qwen3 from and to folders of the Hugging Face libraries: `config.json` and safetensors."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.qwen3.config import Qwen3Config
from models.qwen3.modeling import Qwen3
from models.weights import Tree, Weight, check_float, read, read_json, write

LAYER = "model.layers.{layer}."
TABLE = (
    Weight("model.embed_tokens.weight", "embed/embedding"),
    Weight(LAYER + "input_layernorm.weight", "layers/attention_norm/scale"),
    Weight(LAYER + "self_attn.q_proj.weight", "layers/attention/query/kernel", transposed=True),
    Weight(LAYER + "self_attn.k_proj.weight", "layers/attention/key/kernel", transposed=True),
    Weight(LAYER + "self_attn.v_proj.weight", "layers/attention/value/kernel", transposed=True),
    Weight(LAYER + "self_attn.o_proj.weight", "layers/attention/output/kernel", transposed=True),
    Weight(LAYER + "self_attn.q_norm.weight", "layers/attention/query_norm/scale"),
    Weight(LAYER + "self_attn.k_norm.weight", "layers/attention/key_norm/scale"),
    Weight(LAYER + "post_attention_layernorm.weight", "layers/mlp_norm/scale"),
    Weight(LAYER + "mlp.gate_proj.weight", "layers/mlp/gate/kernel", transposed=True),
    Weight(LAYER + "mlp.up_proj.weight", "layers/mlp/up/kernel", transposed=True),
    Weight(LAYER + "mlp.down_proj.weight", "layers/mlp/down/kernel", transposed=True),
    Weight("model.norm.weight", "final_norm/scale"),
    Weight("lm_head.weight", "lm_head/kernel", transposed=True),
)

# Some published checkpoints with a tied head, Qwen3-0.6B among them, store it twice.
COPIES = {"lm_head.weight": "model.embed_tokens.weight"}

SAME_NAMES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "tie_word_embeddings",
    "initializer_range",
)

# What else changes the function, at the value that is built here.
FIXED = {
    "model_type": "qwen3",
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "rope_scaling": None,
    "quantization_config": None,
}


def load(
    folder: Path | str,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    shardings: Callable[[Tree], Tree] | None = None,
) -> Qwen3:
    """Reads a model from a Hugging Face folder, for instance a downloaded Qwen3-0.6B.

    Args:
        folder: with `config.json` and safetensors, in one file or several.
        dtype: of matrix products and attention, as in `Qwen3`.
        param_dtype: of the parameters, which are cast to it: float32 to train a published model,
            which is bfloat16. None: as in the folder.
        shardings: from the parameters' shapes, as nested dicts of `jax.ShapeDtypeStruct`, to a tree
            of `jax.sharding.Sharding`; each device is then given its own part alone. None: all on
            one device.

    Returns:
        The model.

    Raises:
        ValueError: the configuration asks for what `Qwen3` does not do, or the weights are not
            exactly those of the configuration; every name that differs is listed.

    Example:
        >>> import tempfile
        >>> from models.qwen3 import tiny
        >>> folder = Path(tempfile.mkdtemp()) / "model"
        >>> save(Qwen3(tiny(), rngs=nnx.Rngs(0)), folder)
        >>> load(folder, dtype="bfloat16").config == tiny()
        True
    """
    check_float(param_dtype)
    config = config_from_hugging_face(read_json(Path(folder) / "config.json"))
    model = nnx.eval_shape(
        lambda: Qwen3(config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype or jnp.float32)
    )
    graph, state = nnx.split(model)
    params = read(
        folder,
        TABLE,
        nnx.to_pure_dict(state),
        dtype=param_dtype,
        shardings=shardings,
        copies=COPIES if config.tie_word_embeddings else None,
    )
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def save(
    model: Qwen3,
    folder: Path | str,
    *,
    dtype: DTypeLike | None = None,
    end_of_text: int | None = None,
    files: Mapping[str, str] | None = None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a model as a Hugging Face folder, for `load` and for transformers.

    Args:
        model: the decoder.
        folder: to be made; it appears when it is complete.
        dtype: of the written weights, which are cast to it. None: as the parameters are.
        end_of_text: the token between two documents, at which transformers stops generating.
            None: nothing is written about it.
        files: further text files, such as those of a tokenizer: `{name: content}`.
        shard_bytes: most bytes of weights in one file; also the memory that writing needs.

    Raises:
        ValueError: the folder exists, or a parameter is sharded over several processes.

    Example:
        >>> import tempfile
        >>> from models.qwen3 import tiny
        >>> folder = Path(tempfile.mkdtemp()) / "model"
        >>> save(Qwen3(tiny(), rngs=nnx.Rngs(0)), folder, dtype="bfloat16")
        >>> sorted(path.name for path in folder.iterdir())
        ['config.json', 'model.safetensors']
    """
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    written = jnp.dtype(dtype or params["embed"]["embedding"].dtype)
    config = config_to_hugging_face(model.config) | {"dtype": written.name}
    texts = dict(files or {})
    if end_of_text is not None:
        special = {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
        config |= special
        texts["generation_config.json"] = json.dumps(special, indent=2) + "\n"
    write(folder, TABLE, params, config=config, files=texts, dtype=dtype, shard_bytes=shard_bytes)


def config_from_hugging_face(values: Mapping[str, Any]) -> Qwen3Config:
    """The architecture that a `config.json` describes.

    Args:
        values: what the file says, in the form of any version of transformers from 4.51.

    Raises:
        ValueError: a value is missing, asks for what `Qwen3` does not do, or cannot be built.

    Example:
        >>> from models.qwen3 import qwen3_0_6b
        >>> config_from_hugging_face(config_to_hugging_face(qwen3_0_6b())) == qwen3_0_6b()
        True
    """
    # Version 5 of transformers moved the base of the rotation into a group of its own.
    rotation = values.get("rope_parameters") or {}
    values = {**values, "rope_theta": rotation.get("rope_theta", values.get("rope_theta"))}
    missing = [name for name in (*SAME_NAMES, "rope_theta") if values.get(name) is None]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    other = [f"{n}={values[n]!r}" for n, value in FIXED.items() if values.get(n, value) != value]
    others = rotation.keys() - {"rope_theta", "rope_type"}
    if rotation.get("rope_type", "default") != "default" or others:
        other.append(f"rope_parameters={rotation!r}")
    if set(values.get("layer_types") or []) - {"full_attention"}:
        other.append(f"layer_types={values['layer_types']!r}")
    if other:
        raise ValueError(
            f"config.json asks for {', '.join(other)}; this decoder has "
            f"{', '.join(f'{name}={value!r}' for name, value in FIXED.items())}, the default "
            f"rotation and full attention alone"
        )
    return Qwen3Config(**{name: values[name] for name in (*SAME_NAMES, "rope_theta")})


def config_to_hugging_face(config: Qwen3Config) -> dict[str, Any]:
    """What `config.json` says of an architecture, for transformers 4.51 and newer.

    `max_position_embeddings` is that of the published models; it bounds no computation here.

    Example:
        >>> from models.qwen3 import tiny
        >>> config_to_hugging_face(tiny())["architectures"]
        ['Qwen3ForCausalLM']
    """
    theta = float(config.rope_theta)
    return {
        "architectures": ["Qwen3ForCausalLM"],
        **{name: value for name, value in FIXED.items() if value is not None},
        **{name: getattr(config, name) for name in SAME_NAMES},
        "max_position_embeddings": 40960,
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
    }
