"""Small models of eight kinds, and docs/roles.md, the page of what each of their parameters is.

Written by `python -m tests.frameworks.zoo`; a test holds the page to it.
"""

import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen, nnx
from optax.contrib import MuonDimensionNumbers

from mimuon_jax import by_path, roles_of
from mimuon_jax.engine.axes import axes_of
from mimuon_jax.transforms.roles import Role, roles
from models import qwen3, yolo26
from models.classifier import ResNet, resnet18

PAGE = Path(__file__).resolve().parents[2] / "docs" / "roles.md"
INTRODUCTION = """# What is a matrix, in eight models

The roles of the parameters of small models, as `describe` prints them, with equal rows joined (`*`
is any number) and vectors left out. Written by `python -m tests.frameworks.zoo`, and compared with
it by a test.

Matrices are `[reduction axes] -> [output axes]`, counted from 0; all other axes are batch axes. The
rule is `type` where the classes of the layers decide (`roles_of`), `name` where the default rule
does, and `given` where a pattern of paths does (`by_path`).
"""


class Transformer(linen.Module):
    """One pre-norm block."""

    @linen.compact
    def __call__(self, x):
        x += linen.MultiHeadDotProductAttention(4)(linen.LayerNorm()(x))
        hidden = linen.Dense(64)(linen.LayerNorm()(x))
        return x + linen.Dense(32)(linen.gelu(hidden))


class ViT(linen.Module):
    """A vision transformer."""

    @linen.compact
    def __call__(self, images):
        x = linen.Conv(32, (4, 4), (4, 4), name="patch_embed")(images)
        x = x.reshape(x.shape[0], -1, 32)
        token = self.param("cls_token", linen.initializers.zeros, (1, 1, 32))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        x = x + self.param("pos_embedding", linen.initializers.zeros, (1, x.shape[1], 32))
        x = Transformer()(Transformer()(x))
        return linen.Dense(10, name="head")(linen.LayerNorm()(x)[:, 0])


class UNet(linen.Module):
    """A denoiser: convolutions down and up, attention between, the time in each level."""

    @linen.compact
    def __call__(self, images, time):
        time = linen.Dense(32, name="time_mlp_0")(time)
        time = linen.Dense(16, name="time_mlp_1")(linen.silu(time))
        first = linen.Conv(16, (3, 3), name="conv_in")(images)
        x = linen.silu(linen.GroupNorm(4)(first)) + time[:, None, None]
        x = linen.Conv(16, (3, 3), (2, 2), name="down")(x)
        x = x + linen.MultiHeadDotProductAttention(2)(linen.GroupNorm(4)(x))
        x = linen.ConvTranspose(16, (2, 2), (2, 2), name="up")(x)
        x = linen.Conv(16, (3, 3), name="merge")(jnp.concatenate([x, first], axis=-1))
        return linen.Conv(3, (3, 3), name="conv_out")(x)


class Tagger(linen.Module):
    """A tagger of words: LSTMs in both directions."""

    @linen.compact
    def __call__(self, tokens):
        x = linen.Embed(100, 16)(tokens)
        forward, backward = (linen.RNN(linen.OptimizedLSTMCell(16)) for _ in range(2))
        return linen.Dense(9, name="classifier")(linen.Bidirectional(forward, backward)(x))


class Experts(nnx.Module):
    """A layer of experts, as arrays of its own, and the router to them."""

    def __init__(self, rngs):
        self.router = nnx.Linear(32, 8, use_bias=False, rngs=rngs)
        self.w1 = nnx.Param(jnp.ones((8, 32, 64)))
        self.w2 = nnx.Param(jnp.ones((8, 64, 32)))
        self.norm = nnx.RMSNorm(32, rngs=rngs)


class Adapted(nnx.Module):
    """A layer with low-rank factors beside its kernels."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(100, 32, rngs=rngs)
        self.up = nnx.LoRALinear(32, 64, lora_rank=4, rngs=rngs)
        self.down = nnx.LoRALinear(64, 32, lora_rank=4, rngs=rngs)
        self.lm_head = nnx.Linear(32, 100, rngs=rngs)


def of_nnx(make: Callable[[], nnx.Module], matrices: Callable = roles_of) -> list[Role]:
    """Roles of an nnx model without arrays."""
    model = nnx.eval_shape(make)
    return roles(nnx.state(model, nnx.Param), matrices(model))


def of_linen(model: linen.Module, *inputs: jax.ShapeDtypeStruct) -> list[Role]:
    """Roles of a linen model without arrays."""
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    return roles(params, roles_of(model, *inputs))


def models() -> dict[str, list[Role]]:
    """All models: title and roles."""
    images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    experts = {r"^w[12]$": MuonDimensionNumbers(1, 2)}
    nano = yolo26.scaled("n", 80)
    return {
        "Qwen3": of_nnx(lambda: qwen3.Qwen3(qwen3.tiny(), rngs=nnx.Rngs(0))),
        "YOLO26": of_nnx(lambda: yolo26.YOLO26(nano, rngs=nnx.Rngs(0))),
        "ViT": of_linen(ViT(), images),
        "ResNet": of_nnx(lambda: ResNet(resnet18(), rngs=nnx.Rngs(0))),
        "U-Net with attention": of_linen(UNet(), images, jax.ShapeDtypeStruct((2, 8), jnp.float32)),
        "LSTM tagger": of_linen(Tagger(), jax.ShapeDtypeStruct((2, 5), jnp.int32)),
        "Mixture of experts": of_nnx(
            lambda: Experts(nnx.Rngs(0)), lambda model: by_path(experts, roles_of(model))
        ),
        "LoRA": of_nnx(lambda: Adapted(nnx.Rngs(0))),
    }


def section(title: str, decided: list[Role]) -> str:
    """The table of one model."""
    rows: dict[tuple[str, ...], list[Role]] = {}
    for role in decided:
        if len(role.shape) >= 2:
            name = re.sub(r"\d+", "*", "/".join(role.path.split("/")[-3:]))
            rows.setdefault((name, _goes_to(role), role.why, role.rule), []).append(role)
    lines = [f"\n## {title}\n", "| parameters | | shape | goes to | why | rule |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for (name, goes_to, why, rule), found in rows.items():
        shapes = sorted({role.shape for role in found})
        shape = f"{shapes[0]}" + (f" to {shapes[-1]}" if len(shapes) > 1 else "")
        lines.append(f"| `{name}` | {len(found)} | {shape} | {goes_to} | {why} | {rule} |")
    vectors = sum(len(role.shape) < 2 for role in decided)
    return "\n".join([*lines, f"\nVectors and scalars, auxiliary: {vectors}."])


def _goes_to(role: Role) -> str:
    """``[0] -> [1, 2]`` or ``auxiliary``."""
    if role.numbers is None:
        return "auxiliary"
    _, reduction, output = axes_of(len(role.shape), role.numbers)
    return f"{sorted(reduction)} -> {sorted(output)}"


def page() -> str:
    """The whole page."""
    return INTRODUCTION + "\n".join(section(*model) for model in models().items()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
