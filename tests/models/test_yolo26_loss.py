"""Assignment and loss of the detector: golden numbers, a slow rewrite, and invariances."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from jax.sharding import AxisType, NamedSharding

from models.yolo26.assignment import ONE_TO_MANY, ONE_TO_ONE, Targets, assign
from models.yolo26.boxes import anchors, corners, decode
from models.yolo26.loss import detection_loss, one_to_many_weight, terms
from tests.models import yolo26_loss_oracle as oracle

HEADS = {"o2m": ONE_TO_MANY, "o2o": ONE_TO_ONE}
GAINS = np.array([7.5, 0.5, 1.5])
SIZE, ROWS, CLASSES = (64, 96), 6, 3  # those of the golden batch, so that programs are shared
CENTRES, STRIDES = anchors(*SIZE)


@functools.partial(jax.jit, static_argnames="rule")
def value_and_gradient(raw, targets, rule):
    """The terms, and the gradient of their sum with gains, times the number of images."""

    def total(raw):
        found = terms(raw, targets, size=SIZE, rule=rule)
        return len(raw[0]) * sum(g * t for g, t in zip(GAINS.tolist(), found, strict=True)), found

    return jax.value_and_grad(total, has_aux=True)(raw)


@functools.partial(jax.jit, static_argnames="rule")
def assigned(raw, targets, rule):
    """The assignment of every image."""

    def image(distances, logits, targets):
        boxes = decode(distances, CENTRES, STRIDES)
        return assign(jax.nn.sigmoid(logits), boxes, CENTRES, targets, rule)

    return jax.vmap(image)(*raw, targets)


assign_image = jax.jit(assign, static_argnames="rule")


@jax.jit
def total_loss(many, one, targets):
    """The whole loss in the first epoch."""
    return detection_loss(many, one, targets, size=SIZE, weight=one_to_many_weight(0, 10))


def padded(images, rows=ROWS):
    """Targets of images given by boxes and labels, with impossible values as padding."""
    boxes = np.full((len(images), rows, 4), np.nan, np.float32)
    labels = np.full((len(images), rows), -1, np.int32)
    valid = np.zeros((len(images), rows), bool)
    for i, (b, l) in enumerate(images):
        boxes[i, : len(b)], labels[i, : len(b)], valid[i, : len(b)] = b, l, True
    return Targets(*map(jnp.asarray, (boxes, labels, valid)))


@pytest.fixture(scope="module")
def golden(shared):
    """The reference's numbers."""
    return np.load(shared / "golden" / "yolo26_a.npz")


@pytest.fixture(scope="module")
def golden_targets(golden):
    """The targets of its batch, whose second image is empty."""
    image = golden["A/batch/batch_idx"].astype(int)
    sides = np.array([SIZE[1], SIZE[0]] * 2, np.float32)
    boxes = np.asarray(corners(jnp.asarray(golden["A/batch/bboxes"] * sides)))
    labels = golden["A/batch/cls"][:, 0].astype(np.int32)
    return padded([(boxes[image == i], labels[image == i]) for i in range(3)])


def golden_raw(golden, mode, head):
    """Outputs of a head: distances and logits, channels last."""
    return tuple(golden[f"A/{mode}/{head}_{x}"].transpose(0, 2, 1) for x in ("boxes", "scores"))


@pytest.mark.parametrize("mode", [pytest.param("eval", marks=pytest.mark.slow), "train"])
@pytest.mark.parametrize("head", ["o2m", pytest.param("o2o", marks=pytest.mark.slow)])
def test_terms_and_assignment_equal_the_golden_ones(golden, golden_targets, mode, head):
    raw, name = golden_raw(golden, mode, head), f"A/loss_{mode}/{head}"
    (_, found), _ = value_and_gradient(raw, golden_targets, HEADS[head])
    np.testing.assert_allclose(found, golden[f"{name}/items_raw"], rtol=2e-6)
    got = assigned(raw, golden_targets, HEADS[head])
    foreground = golden[f"{name}/assign_fg"]
    np.testing.assert_array_equal(got.score > 0, foreground)
    np.testing.assert_array_equal(got.target[foreground], golden[f"{name}/assign_gt"][foreground])
    scores = golden[f"{name}/assign_scores"]
    np.testing.assert_allclose(got.score, scores.sum(-1), atol=2e-6)
    labels = np.take_along_axis(np.asarray(golden_targets.labels), np.asarray(got.target), 1)
    np.testing.assert_array_equal(labels[foreground], scores.argmax(-1)[foreground])


@pytest.mark.parametrize("head", ["o2m", pytest.param("o2o", marks=pytest.mark.slow)])
def test_gradients_of_the_outputs_equal_the_golden_ones(golden, golden_targets, head):
    raw = golden_raw(golden, "eval", head)
    _, gradients = value_and_gradient(raw, golden_targets, HEADS[head])
    for got, name in zip(gradients, ("boxes", "scores"), strict=True):
        expected = golden[f"A/loss_eval/{head}/grad_{name}"].transpose(0, 2, 1)
        assert np.abs(got - expected).max() < 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_total_and_what_is_logged_equal_the_golden_ones(golden, golden_targets, mode):
    heads = [golden_raw(golden, mode, head) for head in HEADS]
    loss, logged = total_loss(*heads, golden_targets)
    np.testing.assert_allclose(loss, golden[f"A/loss_{mode}/total_epoch0_sum"], rtol=2e-6)
    expected = golden[f"A/loss_{mode}/o2o/items_gain_scaled"]
    np.testing.assert_allclose([*logged.values()], expected, rtol=2e-6)
    assert list(logged) == ["box", "cls", "dfl"]


def test_one_head_fades_into_the_other_as_in_the_golden_schedule(golden):
    weights = [one_to_many_weight(jnp.int32(epoch), 10) for epoch in range(10)]
    expected = golden["A/loss_eval/progloss_10_epochs"]
    np.testing.assert_allclose(weights, expected[:, 0], rtol=1e-6)
    assert one_to_many_weight(0, 1) == pytest.approx(0.8)
    assert one_to_many_weight(12, 10) == pytest.approx(0.1)


@pytest.mark.parametrize(("rule", "name"), [(ONE_TO_MANY, "top10"), (ONE_TO_ONE, "top7_then1")])
def test_assignment_of_many_sizes_of_objects_equals_the_golden_one(golden, rule, name):
    given = {key: golden[f"assign/in/{key}"] for key in ("scores", "boxes_xyxy", "points")}
    boxes, labels, mask = (golden[f"assign/in/gt_{x}"] for x in ("xyxy", "labels", "mask"))
    targets = Targets(boxes, labels[..., 0].astype(np.int32), mask[..., 0] > 0)

    @jax.jit
    @jax.vmap
    def got(scores, predicted, targets):
        return assign(scores, predicted, jnp.asarray(given["points"]), targets, rule)

    target, score = got(given["scores"], given["boxes_xyxy"], targets)
    foreground = golden[f"assign/floor16/{name}/fg"]
    np.testing.assert_array_equal(score > 0, foreground)
    expected = golden[f"assign/floor16/{name}/gt_index"]
    np.testing.assert_array_equal(target[foreground], expected[foreground])
    scores = golden[f"assign/floor16/{name}/scores"]
    np.testing.assert_allclose(score, scores.sum(-1), atol=2e-6)


@pytest.mark.parametrize(("bound", "side", "enlarged"), [
    (16.0, 15.875, True), (16.0, 16.0, False), (8.0, 7.875, True), (8.0, 8.0, False),
    (8.0, 15.875, False),
])  # fmt: skip
def test_a_side_at_the_bound_is_not_enlarged(bound, side, enlarged):
    middle = jnp.array([35.96875, 35.96875])  # 7.97 from a centre: in 16 pixels, not in 15.875
    box = jnp.concatenate([middle - side / 2, middle + side / 2])
    sought = side / 2 if not enlarged else 8.0
    own = jnp.broadcast_to(box, (len(CENTRES), 4))
    targets = Targets(box[None], jnp.array([0]), jnp.array([True]))
    rule = ONE_TO_MANY._replace(small=bound, candidates=len(CENTRES))
    found = assign_image(jnp.ones((len(CENTRES), 1)), own, CENTRES, targets, rule)
    near = (np.abs(np.asarray(CENTRES) - np.asarray(middle)) < sought).all(1)
    np.testing.assert_array_equal(found.score > 0, near)


def drawn(random):
    """An image with up to six objects, half of them small, and predictions around all of them."""
    rows = random.integers(0, ROWS + 1)
    sides = np.exp2(random.uniform(1, 6, (rows, 2)))
    middle = random.uniform(0, [96, 64], (rows, 2))
    boxes = np.round(8 * np.concatenate([middle - sides / 2, middle + sides / 2], 1)) / 8
    grid = oracle.cells(*SIZE)
    distances = random.uniform(-0.5, 3, (len(grid), 4))
    for n, ((x, y), stride) in enumerate(grid):
        if rows and random.random() < 0.7:  # on its way to one of the objects
            x1, y1, x2, y2 = boxes[random.integers(rows)]
            exact = np.array([x - x1, y - y1, x2 - x, y2 - y]) / stride
            distances[n] = exact + random.normal(0, 0.3, 4) * np.abs(exact)
    logits = random.normal(-1, 2, (len(grid), CLASSES))
    labels = random.integers(0, CLASSES, rows)
    return oracle.Case(
        distances.astype(np.float32), logits.astype(np.float32), boxes.astype(np.float32), labels
    )


@functools.cache
def drawn_batch(seed, rule):
    """Three images, as cases and as arrays, and the clear decisions of the rewrite for them."""
    random = np.random.default_rng(seed)
    cases, decisions = [], []
    while len(cases) < 3:
        case = drawn(random)
        chosen = oracle.assign(case, SIZE, **rule._asdict())
        if chosen.gap > 1e-3:  # float32 errs by 1e-5 in the sixth power
            cases.append(case)
            decisions.append(chosen)
    raw = tuple(jnp.asarray(np.stack(x)) for x in zip(*[case[:2] for case in cases], strict=True))
    return cases, decisions, raw, padded([case[2:] for case in cases])


OLDER = ONE_TO_MANY._replace(small=8.0)
DRAWS = [
    pytest.param(rule, seed, marks=[pytest.mark.slow] * (seed > 0))
    for rule in (ONE_TO_MANY, ONE_TO_ONE, OLDER)
    for seed in range(4)
]


@pytest.mark.parametrize(("rule", "seed"), DRAWS)
def test_assignment_and_terms_equal_the_slow_rewrite(rule, seed):
    cases, decisions, raw, targets = drawn_batch(seed, rule)
    target, score = map(np.asarray, assigned(raw, targets, rule))
    for i, chosen in enumerate(decisions):
        expected = np.zeros(len(CENTRES))
        expected[list(chosen.score)] = list(chosen.score.values())
        np.testing.assert_allclose(score[i], expected, rtol=2e-5, atol=1e-6)
        clear = [n for n, t in chosen.score.items() if t > 1e-6]
        assert target[i][clear].tolist() == [chosen.target[n] for n in clear]
    if rule != OLDER:  # the loss has no other part that knows the rule
        (_, found), _ = value_and_gradient(raw, targets, rule)
        np.testing.assert_allclose(found, oracle.terms(cases, SIZE, decisions)[0], rtol=1e-5)


def test_draws_have_conflicts_empty_images_and_objects_that_only_one_rule_enlarges():
    sizes, changed = set(), 0
    for seed in range(4):
        cases, decisions, _, _ = drawn_batch(seed, ONE_TO_MANY)
        sizes |= {len(case.boxes) for case in cases}
        older = [oracle.assign(case, SIZE, **OLDER._asdict()) for case in cases]
        changed += sum(a.score != b.score for a, b in zip(decisions, older, strict=True))
    assert {0, ROWS} <= sizes
    assert changed > 3


@pytest.mark.parametrize("rule", HEADS.values(), ids=HEADS)
def test_gradients_are_finite_differences_of_the_slow_rewrite(rule):
    cases, decisions, raw, targets = drawn_batch(0, rule)
    _, alphas = oracle.terms(cases, SIZE, decisions)
    (_, _), gradients = value_and_gradient(raw, targets, rule)
    random = np.random.default_rng(1)
    for index in (0, 1):
        direction = random.standard_normal(raw[index].shape)

        def at(step, index=index, direction=direction):
            moved = [
                case._replace(**{("distances", "logits")[index]: case[index] + step * d})
                for case, d in zip(cases, direction, strict=True)
            ]
            return 3 * GAINS @ oracle.terms(moved, SIZE, decisions, alphas)[0]

        slope = (at(1e-6) - at(-1e-6)) / 2e-6
        assert np.sum(gradients[index] * direction) == pytest.approx(slope, rel=1e-4)


def test_an_image_alone_is_assigned_as_in_its_batch():
    _, _, raw, targets = drawn_batch(1, ONE_TO_MANY)
    batch = assigned(raw, targets, ONE_TO_MANY)
    for i in range(3):
        distances, logits, *one = jax.tree.map(lambda x, i=i: x[i], (*raw, *targets))
        boxes = decode(distances, CENTRES, STRIDES)
        alone = assign_image(jax.nn.sigmoid(logits), boxes, CENTRES, Targets(*one), ONE_TO_MANY)
        np.testing.assert_array_equal(alone.target, batch.target[i])
        np.testing.assert_allclose(alone.score, batch.score[i], rtol=1e-5)


def test_order_of_targets_and_padding_change_nothing():
    cases, _, raw, targets = drawn_batch(2, ONE_TO_MANY)
    assert targets.valid.any()
    assert not targets.valid.all()
    expected = assigned(raw, targets, ONE_TO_MANY).score
    longer = padded([case[2:] for case in cases], rows=ROWS + 3)
    np.testing.assert_allclose(assigned(raw, longer, ONE_TO_MANY).score, expected, rtol=1e-5)
    expected = value_and_gradient(raw, targets, ONE_TO_MANY)
    order = np.random.default_rng(0).permutation(ROWS)
    mixed = jax.tree.map(lambda x: x[:, order], targets)
    got = value_and_gradient(raw, mixed, ONE_TO_MANY)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, got, expected)


@pytest.mark.parametrize("rule", HEADS.values(), ids=HEADS)
def test_a_batch_without_objects_teaches_that_there_is_none(rule):
    _, _, raw, _ = drawn_batch(0, ONE_TO_MANY)
    nothing = padded([(np.zeros((0, 4)), [])] * 3)
    (_, found), (distances, logits) = value_and_gradient(raw, nothing, rule)
    expected = np.logaddexp(0, np.asarray(raw[1], float)).sum()
    np.testing.assert_allclose(found, [0, expected, 0], rtol=1e-6)
    assert not distances.any()
    np.testing.assert_allclose(logits, 1.5 * jax.nn.sigmoid(raw[1]), rtol=1e-5)


def test_wild_predictions_have_finite_losses_and_gradients():
    _, _, raw, targets = drawn_batch(0, ONE_TO_MANY)
    wild = np.random.default_rng(0).standard_normal((2, *raw[0].shape[:2], 4)) * 1e4
    for distances in (wild[0], np.trunc(wild[1] / 1e4), 0 * wild[0]):
        found = value_and_gradient((jnp.float32(distances), 50 * raw[1]), targets, ONE_TO_MANY)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("labels", CLASSES), ("labels", -1), ("boxes", np.nan), ("boxes", np.inf)],
)
def test_a_target_that_cannot_be_shows_as_nan(field, wrong):
    _, _, raw, targets = drawn_batch(0, ONE_TO_MANY)
    image, row = np.argwhere(targets.valid)[0]
    array = getattr(targets, field).at[image, row].set(wrong)
    loss, _ = total_loss(raw, raw, targets._replace(**{field: array}))
    assert np.isnan(loss)


@pytest.mark.slow
@pytest.mark.parametrize(
    "axis_type", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)]
)
def test_a_batch_spread_over_eight_devices_is_one_batch(axis_type):
    batches = [drawn_batch(seed, ONE_TO_MANY) for seed in range(3)]
    raw, targets = jax.tree.map(lambda *x: jnp.concatenate(x)[:8], *[b[2:] for b in batches])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        spread = jax.device_put((raw, targets), NamedSharding(mesh, P("data")))
        program = value_and_gradient.lower(*spread, ONE_TO_MANY).compile()
        (_, found), gradients = program(*spread)
    cases, decisions = ([x for batch in batches for x in batch[i]][:8] for i in (0, 1))
    np.testing.assert_allclose(found, oracle.terms(cases, SIZE, decisions)[0], rtol=1e-5)
    # Gradients equal those of batches of three on one device, except for images and divisor.
    parts = []
    for _, chosen, *batch in batches:
        _, part = value_and_gradient(*batch, ONE_TO_MANY)
        factor = 8 / 3 * oracle.divisor(chosen) / oracle.divisor(decisions)
        parts.append(jax.tree.map(lambda x, factor=factor: factor * np.asarray(x), part))
    for got, *expected in zip(gradients, *parts, strict=True):
        np.testing.assert_allclose(got, np.concatenate(expected)[:8], rtol=1e-5, atol=1e-7)
    # Sums cross devices, and nothing else: no device sees another's images.
    crossing = re.findall(r"= (.*?) (all-\w+|reduce-scatter|collective-\w+)\(", program.as_text())
    assert crossing
    assert all(name == "all-reduce" and "[8" not in shape for shape, name in crossing), crossing


def test_of_equally_good_cells_the_first_ones_are_kept():
    box = jnp.array([[8.0, 8.0, 88.0, 56.0]])
    targets = jax.tree.map(lambda x: x[0], padded([(box, [1])]))
    same, sure = jnp.broadcast_to(box, (len(CENTRES), 4)), jnp.ones((len(CENTRES), CLASSES))
    score = assign_image(sure, same, CENTRES, targets, ONE_TO_MANY).score
    within = [n for n, ((x, y), _) in enumerate(oracle.cells(*SIZE)) if 8 < x < 88 and 8 < y < 56]
    assert np.flatnonzero(score).tolist() == within[:10]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (64, 64)}, r"distances \[3, 126, 4\].* have 84 cells, so use distances \[3, 84"),
        ({"rows": 0}, r"with at least one class and one row of targets"),
        ({"images": 2}, r"targets.boxes \[2, 6, 4\].*use .*targets.boxes \[3, 6, 4\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    size, rows, images = ({"size": SIZE, "rows": ROWS, "images": 3} | change).values()
    raw = jnp.zeros((3, 126, 4)), jnp.zeros((3, 126, CLASSES))
    targets = padded([(np.zeros((0, 4)), [])] * images, rows=rows)
    with pytest.raises(ValueError, match=message):
        detection_loss(raw, raw, targets, size=size, weight=0.5)
