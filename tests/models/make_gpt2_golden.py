"""Writes `gpt2_golden.npz`: logits and gradients of the Hugging Face GPT-2 on tiny random models.

Needs torch and transformers and nothing of this repository; from the root of a checkout:

    python tests/models/make_gpt2_golden.py

Every array of the file is named `case/what`, where `what` is `config` (JSON), `tokens`, `logits`,
`loss`, `versions`, `params/NAME` or `gradients/NAME`, and NAME is that of the state dict.
"""

# pyright: reportMissingImports=false
# torch and transformers are imported late: collecting doctests imports every file of this folder.

import json
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).with_name("gpt2_golden.npz")

CASES = {
    "usual": {
        "vocab_size": 23,
        "n_positions": 12,
        "n_embd": 12,
        "n_layer": 2,
        "n_head": 3,
        "n_inner": None,
        "layer_norm_epsilon": 1e-5,
    },
    "unusual": {
        "vocab_size": 19,
        "n_positions": 16,
        "n_embd": 8,
        "n_layer": 3,
        "n_head": 4,
        "n_inner": 20,
        "layer_norm_epsilon": 1e-1,
    },
}


def reference(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Parameters, logits, mean next-token loss and gradients of one random model, in float32."""
    import torch
    import transformers

    torch.manual_seed(seed)
    settings = transformers.GPT2Config(
        **config,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    model = transformers.GPT2LMHeadModel(settings).float().eval()
    # Far from the usual start, so that norms, biases and attention all shape the logits.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "ln" in name and "weight" in name else 0.0, 0.5)
    tokens = torch.randint(config["vocab_size"], (2, 12))
    logits = model(tokens).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, config["vocab_size"]), tokens[:, 1:].reshape(-1)
    )
    loss.backward()
    arrays = {"tokens": tokens, "logits": logits, "loss": loss}
    # `named_parameters` names the tied head once, as the embedding.
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
