"""GPT-2 from and to folders of the Hugging Face libraries: `config.json` and safetensors."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.gpt2.config import GPT2Config
from models.gpt2.modeling import GPT2
from models.weights import Tree, Weight, check_float, filled, read_json, write

LAYER = "transformer.h.{layer}."
# The published linear layers are [reduction, output], like those here.
TABLE = (
    Weight("transformer.wte.weight", "embed/embedding"),
    Weight("transformer.wpe.weight", "position_embed/embedding"),
    Weight(LAYER + "ln_1.weight", "layers/attention_norm/scale"),
    Weight(LAYER + "ln_1.bias", "layers/attention_norm/bias"),
    Weight(LAYER + "attn.c_attn.weight", "layers/attention/query_key_value/kernel"),
    Weight(LAYER + "attn.c_attn.bias", "layers/attention/query_key_value/bias"),
    Weight(LAYER + "attn.c_proj.weight", "layers/attention/output/kernel"),
    Weight(LAYER + "attn.c_proj.bias", "layers/attention/output/bias"),
    Weight(LAYER + "ln_2.weight", "layers/mlp_norm/scale"),
    Weight(LAYER + "ln_2.bias", "layers/mlp_norm/bias"),
    Weight(LAYER + "mlp.c_fc.weight", "layers/mlp/up/kernel"),
    Weight(LAYER + "mlp.c_fc.bias", "layers/mlp/up/bias"),
    Weight(LAYER + "mlp.c_proj.weight", "layers/mlp/down/kernel"),
    Weight(LAYER + "mlp.c_proj.bias", "layers/mlp/down/bias"),
    Weight("transformer.ln_f.weight", "final_norm/scale"),
    Weight("transformer.ln_f.bias", "final_norm/bias"),
)

COPIES = {"lm_head.weight": "transformer.wte.weight"}

# The published checkpoints hold the causal masks as well.
IDLE = re.compile(r".*\.attn\.(masked_)?bias")

# The values that transformers uses where config.json has none: the sizes of the smallest model.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
}

# Other settings that change the function, with the value that is built here. Dropout is not among
# them: it acts in training alone.
FIXED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "add_cross_attention": False,
    "quantization_config": None,
    "reorder_and_upcast_attn": False,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
}


def read_config(folder: Path | str) -> GPT2Config:
    """The architecture of the model in a Hugging Face folder; its weights are not read.

    Raises:
        ValueError: `config.json` is missing or asks for what `GPT2` does not do.
    """
    values = read_json(Path(folder) / "config.json")
    other = [f"{n}={values[n]!r:.60}" for n, x in FIXED.items() if values.get(n, x) != x]
    if other:
        raise ValueError(
            f"config.json asks for {', '.join(other[:3])}, which this GPT-2 does not do; use the "
            "folder of another model"
        )
    return GPT2Config(**{name: values.get(name, x) for name, x in DEFAULTS.items()})


def load(
    folder: Path | str,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    shardings: Callable[[Tree], Tree] | None = None,
) -> GPT2:
    """Reads a model from a Hugging Face folder, for instance a downloaded GPT-2.

    Args:
        folder: with `config.json` and safetensors, in one file or several.
        dtype: of matrix products and attention, as in `GPT2`.
        param_dtype: of the parameters, which are cast to it. None: as in the folder.
        shardings: as in `models.qwen3.load`. None: all on one device.

    Returns:
        The model.

    Raises:
        ValueError: the configuration asks for what `GPT2` does not do, or the weights are not
            exactly those of the configuration; the first names that differ are listed.

    Example:
        >>> import tempfile
        >>> from models.gpt2 import tiny
        >>> folder = Path(tempfile.mkdtemp()) / "model"
        >>> save(GPT2(tiny(), rngs=nnx.Rngs(0)), folder)
        >>> load(folder).config == tiny()
        True
    """
    check_float(param_dtype)
    config = read_config(folder)
    model = nnx.eval_shape(
        lambda: GPT2(config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype or jnp.float32)
    )
    return filled(
        model,
        folder,
        TABLE,
        dtype=param_dtype,
        shardings=shardings,
        prefix="transformer.",
        copies=COPIES,
        idle=IDLE,
    )


def save(
    model: GPT2,
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
            None: there is none.
        files: further text files, such as those of a tokenizer: `{name: content}`.
        shard_bytes: most bytes of weights in one file; also the memory that writing needs.

    Raises:
        ValueError: the folder exists, or a parameter is sharded over several processes.

    Example:
        >>> import tempfile
        >>> from models.gpt2 import tiny
        >>> folder = Path(tempfile.mkdtemp()) / "model"
        >>> save(GPT2(tiny(), rngs=nnx.Rngs(0)), folder, dtype="bfloat16")
        >>> sorted(path.name for path in folder.iterdir())
        ['config.json', 'generation_config.json', 'model.safetensors']
    """
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    written = jnp.dtype(dtype or params["embed"]["embedding"].dtype)
    special = {"bos_token_id": end_of_text, "eos_token_id": end_of_text}  # defaults: GPT-2's 50256
    texts = {"generation_config.json": json.dumps(special, indent=2) + "\n", **(files or {})}
    config = {
        "architectures": ["GPT2LMHeadModel"],
        **FIXED,
        **dataclasses.asdict(model.config),
        **{f"{place}_pdrop": 0.0 for place in ("attn", "embd", "resid")},
        **special,
        "dtype": written.name,
    }
    del config["quantization_config"]
    write(folder, TABLE, params, config=config, files=texts, dtype=dtype, shard_bytes=shard_bytes)
