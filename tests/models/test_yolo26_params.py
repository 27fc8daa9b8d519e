"""Parameters of the detector: matrix axes, groups, PyTorch names, folding."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from optax.contrib import MuonDimensionNumbers

from mimuon_jax import describe
from models import yolo26
from models.yolo26.params import flat_arrays, torch_name
from tests.models.yolo26_cases import TINY, abstract, random_model

NANO = yolo26.scaled("n", 20)
ENTRIES = {"n": 708, "m": 768, "l": 1092}  # of the state dict, counters included


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@pytest.mark.parametrize("form", [lambda state: state, nnx.to_pure_dict], ids=["state", "dict"])
@pytest.mark.parametrize(("depthwise", "matrices"), [(False, 112), (True, 126)])
def test_every_kernel_is_a_matrix_depthwise_ones_on_request(form, depthwise, matrices):
    params = form(nnx.state(abstract(NANO), nnx.Param))
    numbers = yolo26.matrix_dimension_numbers(params, depthwise=depthwise)
    is_numbers = lambda x: isinstance(x, MuonDimensionNumbers)  # noqa: E731
    found = [x for x in jax.tree.leaves(numbers, is_leaf=is_numbers) if x is not None]
    assert set(found) == {MuonDimensionNumbers((0, 1, 2), 3)}
    assert len(found) == matrices
    table = describe(params, yolo26.matrix_dimension_numbers)
    assert re.search(r"layers/0/conv/kernel +\(3, 3, 3, 16\) +1 x \[27, 16\]", table)
    assert re.search(r"depthwise1/conv/kernel.* auxiliary", table)


def test_class_towers_learn_faster_and_only_kernels_decay():
    flat = jax.tree_util.tree_leaves_with_path(params_of(abstract(NANO)))
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    ((pattern, factor),) = yolo26.LEARNING_RATE_FACTORS
    faster = [path for path in paths if re.fullmatch(pattern, path)]
    assert factor == 3
    assert len(faster) == 84
    assert all(".cv3." in torch_name(path) or "_cv3." in torch_name(path) for path in faster)
    decayed = jax.tree.leaves(yolo26.decayed(params_of(abstract(NANO))))
    assert sum(decayed) == 126


@pytest.mark.parametrize("scale", ["n", *(pytest.param(s, marks=pytest.mark.slow) for s in "ml")])
def test_names_are_those_of_a_pytorch_state_dict(scale):
    paths = list(flat_arrays(abstract(yolo26.scaled(scale, 20))))
    names = [torch_name(path) for path in paths]
    assert len(set(names)) == len(names)
    assert len(names) + sum(name.endswith("running_var") for name in names) == ENTRIES[scale]
    assert all(name.startswith("model.") and "/" not in name for name in names)


def test_names_of_every_block():
    paths = {torch_name(path) for path in flat_arrays(abstract(yolo26.scaled("l", 20)))}
    for name in (
        "model.0.conv.weight",
        "model.2.m.1.m.0.cv1.bn.running_mean",
        "model.2.m.0.cv3.conv.weight",
        "model.9.cv2.bn.weight",
        "model.10.m.1.attn.qkv.conv.weight",
        "model.10.m.0.attn.pe.bn.bias",
        "model.10.m.0.ffn.1.conv.weight",
        "model.22.m.0.0.cv2.conv.weight",
        "model.22.m.0.1.attn.proj.bn.running_var",
        "model.23.cv2.0.1.conv.weight",
        "model.23.cv3.2.1.0.conv.weight",
        "model.23.cv3.1.0.1.bn.weight",
        "model.23.one2one_cv2.1.2.bias",
        "model.23.one2one_cv3.0.2.weight",
    ):
        assert name in paths


def test_arrays_go_to_pytorch_and_back_exactly():
    model = random_model(TINY)
    arrays = yolo26.to_torch(model)
    assert arrays["model.0.conv.weight"].shape == (8, 3, 3, 3)
    assert arrays["model.23.cv3.0.0.0.conv.weight"].shape == (8, 1, 3, 3)
    assert arrays["model.0.bn.num_batches_tracked"].dtype == np.int64
    back = flat_arrays(yolo26.from_torch(abstract(TINY), arrays))
    for path, x in flat_arrays(model).items():
        np.testing.assert_array_equal(back[path], x, err_msg=path)


def test_arrays_that_do_not_fit_are_listed():
    arrays = yolo26.to_torch(random_model(TINY))
    wrong = dict(arrays)
    del wrong["model.0.conv.weight"], wrong["model.1.bn.bias"]
    wrong["model.24.conv.weight"] = arrays["model.0.conv.weight"]
    wrong["model.23.cv3.0.2.bias"] = np.zeros(5)
    with pytest.raises(ValueError, match="do not fit") as caught:
        yolo26.from_torch(abstract(TINY), wrong)
    for part in (
        "model.0.conv.weight is missing",
        "model.1.bn.bias is missing",
        "model.24.conv.weight is not a parameter",
        r"model.23.cv3.0.2.bias is [5] there and [3] here",
    ):
        assert part in str(caught.value)


@pytest.mark.slow
def test_folding_keeps_every_convolution():
    model = random_model(TINY)
    folded = yolo26.fold(model)
    assert folded.one_to_many is None
    given, arrays = (
        {path: np.asarray(x) for path, x in flat_arrays(m).items()} for m in (model, folded)
    )
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype(np.float32)
    stem, plain = folded.layers[0], model.layers[0]
    np.testing.assert_allclose(stem(jnp.asarray(x), False), plain(jnp.asarray(x), False), atol=1e-6)
    for path in (p for p in arrays if p.endswith("conv/kernel")):
        norm = {
            k: np.float64(given[path.replace("conv/kernel", f"norm/{k}")])
            for k in ("scale", "bias", "mean", "var")
        }
        gain = norm["scale"] / np.sqrt(norm["var"] + 1e-3)
        np.testing.assert_allclose(arrays[path], given[path] * gain, rtol=1e-5, atol=1e-7)
        bias = arrays[path.replace("kernel", "bias")]
        np.testing.assert_allclose(bias, norm["bias"] - gain * norm["mean"], rtol=1e-5, atol=1e-6)


def test_what_cannot_be_folded_is_refused():
    with pytest.raises(
        ValueError, match="head='o2o' is not a head of this model; use one_to_many or"
    ):
        yolo26.fold(random_model(TINY), head="o2o")
    folded = abstract(TINY, heads=("one_to_one",), folded=True)
    with pytest.raises(ValueError, match="already folded"):
        yolo26.fold(folded)
    with pytest.raises(ValueError, match=r"use one_to_one$"):
        yolo26.fold(folded, head="one_to_many")
