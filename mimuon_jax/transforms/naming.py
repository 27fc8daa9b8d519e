"""The rule by name: the role of a parameter from its own name, its parent's name and its shape.

The parent is the module that holds the parameter: ``Dense_0`` in ``PreNormBlock_0/Dense_0/kernel``.
Other ancestors do not count. The rule knows the names that Flax, Haiku, Keras and plain
dictionaries use. If a name does not decide, the rule reports that; it never guesses.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from mimuon_jax.types import MuonDimensionNumbers

_EMBEDDING = {"embed", "embeds", "embedder", "embedding", "embeddings", "emb", "embs", "posemb"}
_EMBEDDING |= {"wte", "wpe"}
_EMBEDDED = {"token", "tokens", "position", "positions", "word", "words", "vocab", "in", "out"}
_POSITION = {"pos", "position", "positions", "positional"}
_TOKEN = {"token", "tokens", "cls", "codebook", "codebooks", "prototypes", "centroids", "latents"}
_HEAD = {"head", "heads", "classifier", "readout", "unembed", "unembedding", "unembedder"}
_LOGITS = {"logit", "logits", "logitdense", "vocab"}
_OUTPUT = {"output", "outputs", "output_layer"}
_BLOCK = {"attention", "attn", "mha", "mlp", "ffn", "feed"}
_ATTENTION = {"multi", "attention", "attn", "talking", "query", "key", "kv"}
_NORM = {"bn", "gn", "ln", "rms", "norm", "norms", "normalization"}
_GAIN = {"scale", "scales", "gain", "gains", "gamma", "beta", "alpha", "shift", "offset", "slope"}
_GAIN |= {"ls", "temperature", "decay", "zero"}
_ARRAY = {"w", "weight", "weights", "kernel", "matrix", "table", "array", "param", "params"}
_KERNEL = {"kernel", "w", "weight"}
_LAYER = {"proj", "projection", "dense", "linear", "kernel", "w"}
_LARGER = {"block", "blocks", "net", "next", "ne", "former", "mixer", "stack", "model", "linear"}
_LARGER |= {"dense", "act"}


class Verdict(NamedTuple):
    """What a rule decides about one parameter."""

    numbers: MuonDimensionNumbers | None  # None: auxiliary, or not decided
    why: str
    is_decided: bool = True


def by_name(names: Sequence[str], shape: Sequence[int]) -> Verdict:
    """The default rule for one parameter.

    Args:
      names: the keys on the path to the parameter, the outermost first. A key may hold several
        names, as in Haiku's ``"mlp/~/linear_0"``.
      shape: shape of the array.

    Returns:
      Dimension numbers, or None for auxiliary, with the reason; ``is_decided`` is False if the name
      does not decide.

    Example:
      >>> from mimuon_jax.transforms.naming import by_name
      >>> by_name(("PreNormBlock_0", "Dense_0", "kernel"), (4, 8)).numbers
      MuonDimensionNumbers(reduction_axis=0, output_axis=1)
      >>> by_name(("mlp", "b"), (6, 8)).why
      'names a bias'
    """
    rank, (owner, own) = len(shape), owner_and_own(names)
    if rank < 2:
        return Verdict(None, "vector" if rank else "scalar")
    named = vector_of(names) or embedding_or_head(names)
    if named:
        return Verdict(None, f"names {named}")
    if 0 in shape:
        return Verdict(None, "empty")
    if rank == 2:
        return Verdict(MuonDimensionNumbers(0, 1), "matrix")
    if "depthwise" in words_of(own):
        return Verdict(None, "depthwise convolution")
    if is_convolution(own) or (is_convolution(owner) and own.split("_")[-1] in _KERNEL):
        return _convolution(owner if is_convolution(owner) else own, own, shape)
    return Verdict(None, f"rank {rank}, axes unknown", is_decided=False)


def owner_and_own(names: Sequence[str]) -> tuple[str, str]:
    """The names of the parent module and of the parameter; indices of lists are skipped."""
    *modules, own = _parts(names)
    return modules[-1] if modules else "", own


def _parts(names: Sequence[str]) -> list[str]:
    """Names of modules and of the parameter, without indices of lists."""
    parts = [part for part in "/".join(names).split("/") if part not in ("", "~")]
    # An array in a list goes by the name of the list.
    return [part for part in parts if not part.isdigit()] or parts[-1:] or [""]


def vector_of(names: Sequence[str]) -> str | None:
    """The kind of vector, stacked or not, that the parameter's name stands for; else None."""
    owner, own = owner_and_own(names)
    words = words_of(own)
    if re.match(r"b(\d+|[qkvo]|_\w+)?$", own) and "lora" not in owner.lower():
        return "a bias"
    if {"bias", "biases"} & set(words):
        return "a bias"
    if _is_norm(own) or (_is_norm(owner) and not {"kernel", "lora"} & set(words)):
        return "a norm"
    at_an_end = {*words[:1], *words[-1:]} & _GAIN and words[-1] not in _LAYER
    return "a gain" if at_an_end or own in ("g", "D", "A_log") else None


def embedding_or_head(names: Sequence[str]) -> str | None:
    """The kind of parameter if it maps from or to tokens, positions or classes; else None."""
    owner, own = owner_and_own(names)
    words = words_of(own)
    if (set(words) & _POSITION and words[-1] not in _LAYER) or own == "W_E":
        return "an embedding"
    if words[-1:] and words[-1] in _TOKEN - {"token", "tokens"}:
        return "a table of vectors"
    outside = [*_parts(names)[-2::-1], "", ""]  # parent of the parameter, then of its parent
    for name, parent in zip((own, owner), outside, strict=False):
        found = _words_of_thing(name)
        if _is_embedding(found):
            return "an embedding"
        if found[-1:] and found[-1] in ("router", "routers"):
            return "a router"
        if _is_head(name, found):
            return "an output head"
        if "_".join(found) in _OUTPUT and not set(words_of(parent)) & _BLOCK:
            return "an output head"  # in attention or an MLP it would not be the model's output
    return "a token" if words[-1:] and words[-1] in _TOKEN else None


def is_convolution(name: str) -> bool:
    """Whether the name is that of a single convolution, not of a module made of convolutions."""
    words = [word for word in _words_of_thing(name) if word != "d"]
    kinds = ("conv", "convolution", "convtranspose", "deconv")
    at_an_end = bool(words) and (words[0] in kinds or words[-1] in kinds or "transpose" in words)
    return at_an_end and bool(set(words) & set(kinds)) and not set(words) & _LARGER


def dimensions_of(name: str) -> int | None:
    """The number of spatial dimensions in the name of a convolution: 2 for ``Conv2D_0``."""
    found = re.search(r"conv(?:olution)?_?([123])_?d", name, re.IGNORECASE)
    return int(found[1]) if found else None


def words_of(name: str) -> list[str]:
    """``"LayerNorm_0"`` -> ``["layer", "norm"]``, ``"lm_head"`` -> ``["lm", "head"]``."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _words_of_thing(name: str) -> list[str]:
    """The words of a name up to its noun: without ``kernel``, ``weight``, ``table`` at the end."""
    words = words_of(name)
    while len(words) > 1 and words[-1] in _ARRAY:
        words.pop()
    return words


def _is_embedding(words: list[str]) -> bool:
    """``pos_embedding`` and ``embed_tokens``, but not ``embed_to_hidden`` or ``embedding_net``."""
    if not words:
        return False
    return words[-1] in _EMBEDDING or (words[0] in _EMBEDDING and words[-1] in _EMBEDDED)


def _is_head(name: str, words: list[str]) -> bool:
    """``lm_head``, ``Head_0`` and ``vocab_proj``, but not ``multi_head``."""
    if not words or set(words) & _ATTENTION:
        return False
    exact = words == ["score"] or name == "W_U"
    return exact or words[-1] in _HEAD or bool(set(words) & _LOGITS)


def _is_norm(name: str) -> bool:
    """``LayerNorm_0``, ``q_norm``, ``ln_f``, ``rms``, but not ``PreNormBlock_0``."""
    words = _words_of_thing(name)
    if not words:
        return False
    return words[-1].endswith("norm") or bool(
        {words[0], words[-1]} & _NORM and not set(words) & _LARGER
    )


def _convolution(name: str, own: str, shape: Sequence[int]) -> Verdict:
    """The verdict for an array of rank 3 or more of a convolution."""
    rank, words = len(shape), words_of(name)
    dimensions = dimensions_of(name)
    unknown = Verdict(None, f"rank {rank}, axes unknown", is_decided=False)
    if {"depthwise", "dw"} & set(words):
        return Verdict(None, "depthwise convolution")
    if {"group", "grouped"} & set(words):
        return Verdict(None, "grouped convolution")
    if own == "weight":  # PyTorch's [out, in, ...], or Flax's [..., in, out]
        return unknown
    # If the name has no number of dimensions, [6, 3, in, out] may be six 1-D convolutions.
    plain = rank == 3 or (rank == 4 and shape[0] == shape[1])
    if not (rank == dimensions + 2 if dimensions else plain):
        return unknown
    output = rank - 1
    if {"transpose", "deconv", "convtranspose"} & set(words) and not name.startswith(
        "ConvTranspose"
    ):
        if not dimensions:
            return unknown
        output = rank - 2  # Haiku and Keras: [..., out, in]
    elif shape[-2] == 1:
        return Verdict(None, "depthwise convolution")
    reduction = tuple(axis for axis in range(rank) if axis != output)
    return Verdict(MuonDimensionNumbers(reduction, output), "convolution")
