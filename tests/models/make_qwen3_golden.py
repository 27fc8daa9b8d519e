"""Writes `qwen3_golden.npz`: logits and gradients of the Hugging Face Qwen3 on tiny random models.

Needs torch and transformers and nothing of this repository; from the root of a checkout:

    python tests/models/make_qwen3_golden.py

Every array of the file is named `case/what`, where `what` is `config` (JSON), `tokens`, `logits`,
`loss`, `versions`, `params/NAME` or `gradients/NAME`, and NAME is that of the state dict.
"""

# pyright: reportMissingImports=false
# torch and transformers are imported late: collecting doctests imports every file of this folder.

import json
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).with_name("qwen3_golden.npz")

COMMON = {"vocab_size": 37, "hidden_size": 12, "intermediate_size": 20, "num_attention_heads": 4}
CASES = {
    "tied_ratio1": COMMON
    | {
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "head_dim": 4,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    "untied_ratio2": COMMON
    | {
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "rope_theta": 100.0,
        "rms_norm_eps": 1e-2,
        "tie_word_embeddings": False,
    },
    "tied_ratio4": COMMON
    | {
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
}


def reference(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Parameters, logits, mean next-token loss and gradients of one random model, in float32."""
    import torch
    import transformers

    torch.manual_seed(seed)
    rotation = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    settings = transformers.Qwen3Config(
        **config, rope_parameters=rotation, attention_dropout=0.0, attn_implementation="eager"
    )
    model = transformers.Qwen3ForCausalLM(settings).float().eval()
    # Far from the usual start, so that norms, rotation and attention all shape the logits.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.5)
    tokens = torch.randint(config["vocab_size"], (2, 12))
    logits = model(tokens).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, config["vocab_size"]), tokens[:, 1:].reshape(-1)
    )
    loss.backward()
    arrays = {"tokens": tokens, "logits": logits, "loss": loss}
    # `named_parameters` names a tied head once, as the embedding.
    for name, parameter in model.named_parameters():
        arrays[f"params/{name}"] = parameter
        arrays[f"gradients/{name}"] = parameter.grad
    return {name: np.array(array.detach().numpy()) for name, array in arrays.items()}


def main() -> None:
    """Writes the file."""
    import torch
    import transformers

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    golden = {}
    for seed, (case, config) in enumerate(CASES.items()):
        arrays = reference(config, seed) | {
            "config": np.array(json.dumps(config)),
            "versions": np.array(versions),
        }
        golden |= {f"{case}/{name}": array for name, array in arrays.items()}
    np.savez_compressed(GOLDEN, **golden)


if __name__ == "__main__":
    main()
