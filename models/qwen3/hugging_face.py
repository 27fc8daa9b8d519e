"""Qwen3 from and to folders of the Hugging Face libraries: `config.json` and safetensors."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.qwen3.config_json import config_to_hugging_face, read_config
from models.qwen3.modeling import Qwen3
from models.weights import Tree, Weight, check_float, filled, write

LAYER = "model.layers.{layer}."
TABLE = (
    Weight("model.embed_tokens.weight", "embed/embedding"),
    Weight(LAYER + "input_layernorm.weight", "layers/attention_norm/scale"),
    Weight(LAYER + "self_attn.q_proj.weight", "layers/attention/query/kernel", transposed=True),
    Weight(LAYER + "self_attn.k_proj.weight", "layers/attention/key/kernel", transposed=True),
    Weight(LAYER + "self_attn.v_proj.weight", "layers/attention/value/kernel", transposed=True),
    Weight(LAYER + "self_attn.o_proj.weight", "layers/attention/output/kernel", transposed=True),
    Weight(LAYER + "self_attn.q_proj.bias", "layers/attention/query/bias"),
    Weight(LAYER + "self_attn.k_proj.bias", "layers/attention/key/bias"),
    Weight(LAYER + "self_attn.v_proj.bias", "layers/attention/value/bias"),
    Weight(LAYER + "self_attn.o_proj.bias", "layers/attention/output/bias"),
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

# Checkpoints of earlier versions of transformers hold the frequencies of the rotation as well.
IDLE = re.compile(r".*rotary_emb\.inv_freq")


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
        param_dtype: of the parameters, which are cast to it; published models are bfloat16, and
            float32 is for training them. None: as in the folder.
        shardings: from the parameters' shapes, as nested dicts of `jax.ShapeDtypeStruct`, to a tree
            of `jax.sharding.Sharding`; each device reads only its own part. None: all on one
            device.

    Returns:
        The model.

    Raises:
        ValueError: the configuration asks for what `Qwen3` does not do, or the weights are not
            exactly those of the configuration; the first names that differ are listed.

    Example:
        >>> import tempfile
        >>> from models.qwen3 import tiny
        >>> folder = Path(tempfile.mkdtemp()) / "model"
        >>> save(Qwen3(tiny(), rngs=nnx.Rngs(0)), folder)
        >>> load(folder, dtype="bfloat16").config == tiny()
        True
    """
    check_float(param_dtype)
    config = read_config(folder)
    model = nnx.eval_shape(
        lambda: Qwen3(config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype or jnp.float32)
    )
    return filled(
        model,
        folder,
        TABLE,
        dtype=param_dtype,
        shardings=shardings,
        prefix="model.",
        copies=COPIES if config.tie_word_embeddings else None,
        idle=IDLE,
    )


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
