"""What a run shows: points, gates, traces and model FLOPs, each of them once."""

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from train.flops import PEAK, model_flops, peak_flops, product_flops
from train.gates import GateLog, closed_throughout, draw_gates, read_gates
from train.mesh import make_mesh
from train.optimizers import MiMuon
from train.progress import Reporter
from train.record import Record
from train.tasks.language_model import LanguageModel
from train.tensorboard import TensorBoard

Make = Callable[..., LanguageModel]


def points(folder: Path) -> list[tuple[int, str, float]]:
    """What TensorBoard shows: a START removes all points from its step on."""
    shown: list[tuple[int, str, float]] = []
    for path in sorted(folder.glob("events*")):
        content, at = path.read_bytes(), 0
        while at + 12 <= len(content):  # records: length, its checksum, event, its checksum
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            if event.session_log.status == SessionLog.START:
                shown = [point for point in shown if point[0] < event.step]
            shown += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return shown


def test_tensorboard_has_each_point_of_a_resumed_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for start, file in ((0, 1), (0, 2), (2, 3), (3, 4)):  # also started over without a checkpoint
        monkeypatch.setattr("time.time", lambda file=file: 1e9 + file)  # names the file
        board = TensorBoard(tmp_path, step=start)
        if start == 0:
            board.write(0, "validation", {"loss": 9.0})
        for step in range(start + 1, start + 4):
            board.write(step, "train", {"loss": float(file)})
        board.sync()
        board.close()
    assert len(list(tmp_path.iterdir())) == 4
    assert points(tmp_path) == [
        (0, "validation/loss", 9.0),
        *((step, "train/loss", value) for step, value in enumerate((2, 2, 3, 4, 4, 4), start=1)),
    ]


def test_a_loss_that_is_not_finite_is_written_without_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    board = TensorBoard(tmp_path, step=0)
    board.write(1, "train", {"loss": float("nan"), "gate": float("inf")})
    board.close()
    assert len(points(tmp_path)) == 2
    assert (caplog.text, capfd.readouterr()) == ("", ("", ""))


def test_gates_of_a_resumed_run_are_there_once(tmp_path: Path):
    draw = np.random.default_rng(0)
    rows = [{"up": draw.random((3, 4)) < 0.5, "head": np.array(step % 2 == 0)} for step in range(9)]
    for start, end in ((0, 5), (3, 7), (7, 9)):
        log = GateLog(tmp_path / "gates.bits", step=start)
        for row in rows[start:end]:
            log.write(row)
        log.sync()
        log.close()
    names, is_open = read_gates(tmp_path / "gates.bits")
    assert names[:5] == ["up[0][0]", "up[0][1]", "up[0][2]", "up[0][3]", "up[1][0]"]
    assert names[-1] == "head"
    expected = [np.append(row["up"].ravel(), row["head"]) for row in rows]
    np.testing.assert_array_equal(is_open, expected)
    assert (tmp_path / "gates.bits").stat().st_size == 9 * 2
    draw_gates(tmp_path / "gates.bits", tmp_path / "gates.png", title="gates")
    assert (tmp_path / "gates.png").read_bytes().startswith(b"\x89PNG")


def test_a_gate_that_never_opened_is_told_in_one_line(tmp_path: Path):
    for name, opened in (("shut", False), ("once", True)):
        log = GateLog(tmp_path / name, step=0)
        for step in range(3):
            log.write({"up": np.array([False, opened and step == 1])})
        log.close()
    assert closed_throughout(tmp_path / "once") is None
    line = closed_throughout(tmp_path / "shut")
    assert line is not None
    assert "the gate was closed for all 2 matrices at all 3 steps" in line
    assert "--optimizer.relative-to" in line


def test_no_gate_leaves_no_file(tmp_path: Path):
    log = GateLog(tmp_path / "gates.bits", step=3)
    log.sync()
    log.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("NVIDIA L400", None),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_device(kind: str, peak: float | None):
    assert peak_flops(kind) == peak


def test_products_are_counted_in_scans_branches_and_convolutions():
    x, w = jnp.ones((2, 8)), jnp.ones((8, 8))

    def scanned(x: Any) -> Any:
        return jax.lax.scan(lambda x, _: (jax.checkpoint(jnp.tanh)(x @ w), None), x, length=5)[0]

    def branches(x: Any) -> Any:
        return jax.lax.cond(x[0, 0] > 0, scanned, lambda x: x @ w, x)

    def convolution(x: Any) -> Any:
        return jax.lax.conv(x, jnp.ones((16, 4, 3, 3)), (2, 2), "SAME")

    count = lambda f, x: product_flops(jax.make_jaxpr(jax.jit(f))(x).jaxpr)  # noqa: E731
    assert count(scanned, x) == count(branches, x) == 5 * 2 * 2 * 8 * 8
    assert count(convolution, jnp.ones((1, 4, 8, 8))) == 2 * (16 * 4 * 4) * (4 * 3 * 3)


@pytest.mark.parametrize("remat", [False, True])
def test_the_flops_of_a_language_model_are_those_of_its_formula(
    remat: bool, small: Make, tmp_path: Path
):
    config = small(tmp_path, remat=remat)
    model, length = config.model, config.data.sequence_length
    width, heads = model.hidden_size, model.num_attention_heads * model.head_dim
    keys = model.num_key_value_heads * model.head_dim
    weights = model.num_hidden_layers * (
        width * (2 * heads + 2 * keys) + 3 * width * model.intermediate_size
    )
    attention = model.num_hidden_layers * 2 * heads * length  # scores, and weighted values
    a_token = 2 * (weights + attention + width * model.vocab_size)
    expected = 3 * a_token * length * config.batch_size
    assert model_flops(config.task(make_mesh("data=1"))) == expected


def test_a_record_has_the_share_of_the_peak_where_that_is_known(
    small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (kind,) = {device.device_kind for device in jax.devices()}
    monkeypatch.setitem(PEAK, kind, 1e9)
    config = dataclasses.replace(small(tmp_path), profile=True, log=("tensorboard",))
    config = dataclasses.replace(config, optimizer=MiMuon())
    task = config.task(make_mesh("data=1"))
    values = {"loss": 1.0, "skipped": 0, "gates": {"up": np.array([True, False])}}
    clock = iter(np.arange(1000.0))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    reporter = Reporter(9, unit="bytes", loss_unit="nats/byte", quiet=True)
    with Record(config, task, reporter, tmp_path, step=0, devices=2) as record:
        for step in range(1, 10):
            record.train(step, dict(values))
        record.flush()
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    seconds = task.items_per_step / line["wall"]["bytes_per_second"]
    assert line["wall"]["mfu"] == pytest.approx(model_flops(task) / (2 * 1e9 * seconds))
    assert "gates" not in line
    assert read_gates(tmp_path / "gates.bits")[1].tolist() == [[True, False]] * 9
    assert [p[2] for p in points(tmp_path / "tensorboard") if p[1] == "train/loss"] == [1.0] * 9
    (trace,) = (tmp_path / "tensorboard" / "plugins" / "profile").iterdir()
    assert list(trace.glob("*.xplane.pb"))
