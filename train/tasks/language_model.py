"""Language modelling: a decoder on text, as bytes or as tokens of a vocabulary."""

import dataclasses
import functools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from models.attention import Implementation
from models.cross_entropy import cross_entropy
from models.decoder import Decoder
from models.params import matrix_dimension_numbers
from models.qwen3 import tiny
from models.sampling import sample
from train import sharding_rules
from train.config import Config
from train.data.language import load
from train.data.text import TextData
from train.data.tokenizers import TOKENIZER_FILE, Bytes, Tokenizer, load_tokenizer
from train.data.windows import training_batches
from train.errors import require
from train.files import write_atomically
from train.task import Init, Task, Tree
from train.tasks import decoders
from train.tasks.held_out_loss import Weights, held_out_loss
from train.tasks.pretrained import architecture_of, require_equal, weights

BYTES = 256


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The text to sample at the end of a run."""

    prompt: str = "The "
    """Beginning of the text."""

    length: int = 400
    """Number of tokens to sample (bytes, if tokens are bytes)."""

    temperature: float = 0.8
    """Temperature of the softmax; 0 takes the most likely token, 1 samples from the model's
    distribution."""

    def __post_init__(self) -> None:
        require(bool(self.prompt), "sample.prompt is empty; give a text to start from")
        require(self.length >= 1, f"sample.length={self.length} must be at least 1")
        require(
            0 <= self.temperature < math.inf,
            f"sample.temperature={self.temperature} must be a finite number >= 0",
        )


@dataclass(frozen=True, kw_only=True)
class LanguageModel(Config):
    """A language model; losses are in nats per token (per byte, if tokens are bytes)."""

    data: TextData = field(default_factory=TextData)
    # The preset chooses the class; options change its fields.
    model: tyro.conf.AvoidSubcommands[decoders.Architecture] = field(default_factory=tiny)
    sample: Sample = field(default_factory=Sample)

    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of matrix products and attention; parameters and losses are float32."""

    attention: Implementation = "auto"
    """How attention is computed. cudnn: a kernel for bfloat16 on NVIDIA GPUs that never holds all
    scores; xla: works everywhere and holds all scores of a layer; auto: cudnn where it is found and
    can compute what is asked for (not rows of several documents), otherwise xla."""

    remat: bool = False
    """Compute every layer again in the backward pass, for less memory and a third more time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.data.tokenizer != "bytes"
            or self.data.source == "shards"
            or self.model.vocab_size == BYTES,
            f"model.vocab_size={self.model.vocab_size} must be {BYTES}: tokens are bytes; "
            "--data.tokenizer bpe learns a larger vocabulary, --data.tokenizer FILE reads one",
        )
        require(
            self.data.sequence_length <= self.positions,
            f"data.sequence_length={self.data.sequence_length} is more than the {self.positions} "
            "positions of the model; shorten it, or use a larger --model.n-positions",
        )
        require(
            self.attention != "cudnn" or self.compute_dtype == "bfloat16",
            f"attention=cudnn computes in 16 bits, and compute_dtype={self.compute_dtype}; use "
            "--compute-dtype bfloat16, or --attention auto",
        )

    @property
    def positions(self) -> float:
        """Maximum number of tokens in a sequence."""
        return decoders.positions(self.model)

    def reopened(self, directory: Path) -> Self:
        """The same configuration for a run that is now in `directory`, to be used anywhere."""
        tokenizer, data = directory / TOKENIZER_FILE, self.data
        if tokenizer.exists():
            data = dataclasses.replace(data, tokenizer=str(tokenizer))
        return dataclasses.replace(self, run_dir=directory, data=data, attention="auto")

    def architecture(self, mesh: Mesh | None = None) -> tuple[nnx.GraphDef[Decoder], Init]:
        """The model's graph, and the function that initializes `params` and `model_state`."""
        made: dict[str, Any] = {"dtype": jnp.dtype(self.compute_dtype)}
        made["attention"] = self.attention if mesh is None else self._attention(mesh)
        make = functools.partial(decoders.make_decoder, self.model, **made)
        graph, _, _ = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), nnx.Param, ...)

        def init(key: PRNGKeyArray) -> tuple[Tree, Tree]:
            _, params, model_state = nnx.split(make(rngs=nnx.Rngs(key)), nnx.Param, ...)
            return nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)

        return graph, init

    def _attention(self, mesh: Mesh) -> Implementation:
        """The implementation on a mesh: cuDNN's needs a GPU, and whole heads on every device."""
        heads, parts = decoders.key_heads(self.model), mesh.shape["tensor"]
        whole, platform = heads % parts == 0, mesh.devices.flat[0].platform
        require(
            self.attention != "cudnn" or (whole and platform in ("gpu", "cuda")),
            f"attention=cudnn needs an NVIDIA GPU and a number of key heads that tensor={parts} "
            f"divides; here are {heads} on a {platform}; use --attention auto",
        )
        return self.attention if whole else "xla"

    def init(self, directory: Path) -> Init:
        """The function that initializes the decoder."""
        del directory
        return self.architecture()[1]

    def completed(self, default: Config) -> Self:
        """The configuration with the architecture of `pretrained`, where options gave no other."""
        if self.pretrained is None or not isinstance(default, LanguageModel):
            return self
        found = architecture_of(self.pretrained)
        before = dataclasses.asdict(default.model)
        given = {n: v for n, v in dataclasses.asdict(self.model).items() if v != before.get(n)}
        require_equal(self.pretrained, found, self.model, fields=given)
        kept = {
            name: getattr(self.model, name)
            for name in ("initializer_range",)
            if hasattr(found, name) and hasattr(self.model, name)
        }
        return dataclasses.replace(self, model=dataclasses.replace(found, **kept))

    def _require_positions(self, tokenizer: Tokenizer) -> None:
        """Refuses a sample that is longer than the model's positions."""
        written = 1 + len(tokenizer.encode(self.sample.prompt)) + self.sample.length
        require(
            written <= self.positions,
            f"sample.length={self.sample.length} and the prompt are {written} tokens, more than "
            f"the {self.positions} positions of the model; shorten them",
        )

    def task(self, mesh: Mesh) -> Task:
        """Reads the text and builds the model's functions."""
        data = load(self.data, vocab_size=self.model.vocab_size)
        self._require_positions(data.tokenizer)
        graph, init = self.architecture(mesh)
        rules = sharding_rules.decoder(self.model)
        remat = functools.partial(jax.checkpoint, prevent_cse=False) if self.remat else None
        layer_by_layer = sharding_rules.layer_by_layer(rules, mesh, remat)

        def forward(
            params: Tree,
            model_state: Tree,
            batch: Tree,
            weights: Weights | None = None,
            *,
            sow_max_logits: bool = False,
        ) -> tuple[Float[Array, ""], dict[str, Any]]:
            tokens, documents = _tokens(batch)
            model = nnx.merge(graph, sharding_rules.as_used(params, rules, mesh), model_state)
            hidden, sown = nnx.capture(model.hidden_states, nnx.Intermediate)(
                tokens[:, :-1], remat=layer_by_layer, sow_max_logits=sow_max_logits, **documents
            )
            extra = {"max_logits": {"layers": sown["max_logits"][0]}} if sow_max_logits else {}
            options: Any = {"weights": weights, "groups": sharding_rules.head_groups(mesh)}
            options |= {"logit_cap": model.logit_cap}
            return cross_entropy(hidden, model.head, tokens[:, 1:], **options), extra

        def loss(
            params: Tree, model_state: Tree, batch: Tree, key: PRNGKeyArray, step: Array
        ) -> Any:
            del key, step  # a decoder without dropout is deterministic
            wanted = self.optimizer.needs_max_logits
            value, extra = forward(params, model_state, batch, sow_max_logits=wanted)
            return value, (model_state, extra)

        def finish(params: Tree, model_state: Tree, directory: Path) -> str:
            model = nnx.merge(graph, params, model_state)
            text = sample_text(model, data.tokenizer, self.sample, seed=self.seed)
            write_atomically(directory / "sample.txt", text + "\n")
            return text

        is_bytes = self.data.tokenizer == "bytes" and self.data.source != "shards"
        unit = "byte" if is_bytes else "token"
        tokenizer_json = data.tokenizer.json()
        return Task(
            init=init,
            loss=loss,
            batches=training_batches(
                data.training,
                batch_size=self.batch_size,
                seed=self.seed,
                shuffled=data.shuffled,
            ),
            evaluate=held_out_loss(
                lambda *given: forward(*given)[0],
                data,
                self.data.evaluation_sequences,
                self.batch_size,
                mesh,
            ),
            finish=finish,
            matrices=matrix_dimension_numbers,
            sharding_rules=rules,
            items_per_step=self.batch_size * self.data.sequence_length,
            unit=f"{unit}s",
            loss_unit=f"nats/{unit}",
            data=data.identity,
            split=decoders.split(self.model),
            query_key=decoders.query_key(self.model),
            pretrained=None if self.pretrained is None else functools.partial(weights, self, init),
            files={} if tokenizer_json is None else {TOKENIZER_FILE: tokenizer_json},
        )


def tokenizer_of(config: LanguageModel) -> Tokenizer:
    """The tokenizer that a run was trained with."""
    path = config.data.tokenizer
    return Bytes() if path == "bytes" else load_tokenizer(Path(path))


def sample_text(model: Decoder, tokenizer: Tokenizer, options: Sample, *, seed: int) -> str:
    """The prompt and the sampled text; bytes that are not UTF-8 become replacement characters."""
    start = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    prompt = tokenizer.encode(options.prompt)
    added = sample(
        model,
        jnp.asarray([start + prompt], jnp.int32),
        options.length,
        jax.random.key(seed),
        temperature=options.temperature,
    )
    return tokenizer.decode(prompt + np.asarray(added[0]).tolist())


def _tokens(batch: Tree) -> tuple[Integer[Array, "B T+1"], dict[str, Any]]:
    """Tokens as int32, and the segments and positions of the documents of packed rows."""
    if not isinstance(batch, dict):
        return batch.astype(jnp.int32), {}
    documents = {name: batch[name] for name in ("segment_ids", "positions")}
    return batch["tokens"].astype(jnp.int32), documents
