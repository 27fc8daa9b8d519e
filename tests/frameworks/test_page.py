"""The lines of docs/frameworks.md run, where their framework is installed."""

import re
from pathlib import Path

import jax
import pytest
from flax import nnx

from mimuon_jax import roles_of
from mimuon_jax.engine.axes import axes_of
from mimuon_jax.transforms.roles import Role, roles
from models import classifier, qwen3, yolo26
from tests.frameworks import zoo

pytestmark = pytest.mark.standard_promotion
PAGE = Path(__file__).resolve().parents[2] / "docs" / "frameworks.md"
SECTIONS = re.findall(
    r"^## ([^\n]+)\n((?:(?!^## ).)*?)^```python\n(.*?)^```",
    PAGE.read_text(),
    re.DOTALL | re.MULTILINE,
)
EXPECTED = ["Flax nnx", "Flax linen", "Equinox", "Haiku", "Plain dictionaries"]
EXPECTED += ["optax.multi_transform and optax.masked", "optax.contrib.muon"]
EXPECTED += ["Muon-MVR2, which takes two gradients", "NumPyro", "Brax"]


def test_every_framework_has_its_block():
    assert [title for title, _, _ in SECTIONS] == EXPECTED


@pytest.mark.parametrize("title", EXPECTED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the frameworks, at import
def test_blocks_run(title):
    (block,) = [code for name, _, code in SECTIONS if name == title]
    for framework in re.findall(
        r"^(?:import|from) (equinox|haiku|numpyro|brax)\b", block, re.MULTILINE
    ):
        pytest.importorskip(framework)
    exec(compile(block, f"{PAGE.name}: {title}", "exec"), {"__name__": "page"})


def test_the_page_of_roles_is_what_its_program_writes_now():
    assert zoo.PAGE.read_text() == zoo.page()


def axes(role: Role) -> tuple | None:
    """Batch, reduction and output axes."""
    return None if role.numbers is None else axes_of(len(role.shape), role.numbers)


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (lambda: qwen3.Qwen3(qwen3.tiny(), rngs=nnx.Rngs(0)), qwen3.matrix_dimension_numbers),
        (
            lambda: classifier.ResNet(classifier.resnet18(), rngs=nnx.Rngs(0)),
            classifier.matrix_dimension_numbers,
        ),
        (
            lambda: yolo26.YOLO26(yolo26.scaled("n", 80), rngs=nnx.Rngs(0)),
            yolo26.matrix_dimension_numbers,
        ),
    ],
    ids=["qwen3", "resnet", "yolo26"],
)
def test_module_types_agree_with_what_the_models_declare(make, numbers):
    model = nnx.eval_shape(make)
    params = nnx.state(model, nnx.Param)
    both = zip(roles(params, roles_of(model)), roles(params, numbers), strict=True)
    differ = {one.path for one, other in both if axes(one) != axes(other)}
    # The detector takes its last convolutions for matrices too.
    assert all(path.endswith("output/kernel") for path in differ)
    assert len(differ) == (12 if "yolo26" in str(numbers.__module__) else 0)
    assert jax.tree.leaves(params)
