"""The loop: what a run writes, and that an interrupted run resumes without a difference."""

import dataclasses
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import cli, loop, presets, run_directory
from train.errors import BadInput, Interrupted, TrainingStopped
from train.integrity import INTEGRITY
from train.loop import run
from train.mesh import batch_sharding, make_mesh
from train.metrics import read_metrics
from train.optimizers import OPTIMIZERS, MiMuon, make_optimizer
from train.run_directory import Result
from train.step import State, jit_step, make_state, train_step
from train.task import Task, split_batch
from train.tasks.language_model import LanguageModel

pytestmark = pytest.mark.standard_promotion

Make = Callable[..., LanguageModel]


def slow_except(fast: Any, values: Iterable[Any]) -> list[Any]:
    """The parameters of a test, of which one alone runs by default."""
    return [pytest.param(value, marks=[pytest.mark.slow] * (value != fast)) for value in values]


def numbers(directory: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without measurements of time."""
    lines = read_metrics(directory / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name != "wall"} for line in lines]


def steps_kept(directory: Path) -> list[int]:
    """The checkpoints of a run."""
    return sorted(int(p.name) for p in (directory / "checkpoints").iterdir() if p.name.isdecimal())


@pytest.fixture(scope="module")
def finished(small: Make, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """An uninterrupted run."""
    return run(small(tmp_path_factory.mktemp("finished") / "run"), quiet=True)


@pytest.fixture
def copied(finished: Result, tmp_path: Path) -> Path:
    """A copy of its directory, before the result was written."""
    shutil.copytree(finished.run_dir, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run"


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ends a run, as a signal would, before the given batch is sharded."""

    def arrange(batch: int) -> None:
        seen = []

        def interrupt(*arguments: Any) -> Any:
            seen.append(None)
            if len(seen) == batch:
                raise KeyboardInterrupt
            return split_batch(*arguments)

        monkeypatch.setattr(loop, "split_batch", interrupt)

    return arrange


def test_a_run_writes_what_it_promises(finished: Result):
    directory = finished.run_dir
    assert finished.trained
    assert finished.steps == 6
    lines = numbers(directory)
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    validation = {line["step"]: line["loss"] for line in lines if line["split"] == "validation"}
    assert list(validation) == [0, 2, 4, 6]
    assert finished.initial_validation_loss == validation[0] == pytest.approx(np.log(256), abs=0.1)
    assert finished.validation_loss == validation[6] < validation[0] - 0.05
    assert (finished.best_metric, finished.best_value) == ("loss", min(validation.values()))
    assert set(lines[1]) == {
        *("step", "split", "loss", "gradient_norm", "learning_rate", "skipped")
    }
    assert (directory / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (directory / "tensorboard").exists()  # only with --log tensorboard
    assert not list(directory.glob("gates*"))  # adamw has no gate
    assert len((directory / "sample.txt").read_bytes()) > len("The ")
    assert steps_kept(directory) == [4, 6]
    environment = json.loads((directory / "environment.jsonl").read_text())
    assert environment["versions"]["jax"] == jax.__version__
    config = json.loads((directory / "config.json").read_text())
    assert config["config"]["optimizer"]["type"] == "AdamW"
    assert config["data"]["bytes"] > 0


@pytest.mark.slow
def test_validation_weighs_every_held_out_byte_alike(small: Make, tmp_path: Path):
    losses = []
    for batch_size in (8, 64):  # 8 does not divide the number of windows, 64 exceeds it
        config = small(tmp_path, batch_size=batch_size)
        task = config.task(make_mesh("data=1"))
        losses.append(task.evaluate(*jax.jit(task.init)(jax.random.key(0)))["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_finished_run_is_not_trained_again(
    finished: Result, small: Make, monkeypatch: pytest.MonkeyPatch
):
    before = {p: p.stat().st_mtime_ns for p in finished.run_dir.rglob("*")}
    again = run(small(finished.run_dir), quiet=True)
    assert again == finished._replace(trained=False)
    assert {p: p.stat().st_mtime_ns for p in finished.run_dir.rglob("*")} == before


@pytest.mark.parametrize("batch", slow_except(4, [1, 4, 5]))
def test_an_interrupted_run_goes_on_bit_for_bit(
    batch: int,
    finished: Result,
    small: Make,
    tmp_path: Path,
    stop_at: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
):
    config = small(tmp_path / "run")
    stop_at(batch)
    with pytest.raises(KeyboardInterrupt):
        run(config, quiet=True)
    assert len(numbers(tmp_path / "run")) < len(numbers(finished.run_dir))
    monkeypatch.undo()
    result = run(config, quiet=True)
    assert numbers(tmp_path / "run") == numbers(finished.run_dir)
    assert result._replace(run_dir=finished.run_dir) == finished
    sample = (tmp_path / "run" / "sample.txt").read_bytes()
    assert sample == (finished.run_dir / "sample.txt").read_bytes()


@pytest.mark.parametrize(
    ("batch", "received"),  # a step without an evaluation and one with an evaluation
    [
        pytest.param(3, signal.SIGTERM, marks=pytest.mark.slow),
        (4, signal.SIGINT),
        pytest.param(1, signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_the_step_and_the_run_goes_on_there(
    batch: int,
    received: signal.Signals,
    finished: Result,
    small: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    if signal.getsignal(received) is signal.SIG_IGN:
        pytest.skip(f"{received.name} is ignored here, as under nohup")
    config, batches, before = small(tmp_path / "run"), [], signal.getsignal(received)

    def send(*arguments: Any) -> Any:
        batches.append(None)
        if len(batches) == batch:
            os.kill(os.getpid(), received)
        return split_batch(*arguments)

    monkeypatch.setattr(loop, "split_batch", send)
    with pytest.raises(Interrupted, match=f"{received.name}; saved after step {batch} of 6") as end:
        run(config, quiet=True)
    assert end.value.signal == received
    assert signal.getsignal(received) == before
    assert steps_kept(tmp_path / "run")[-1] == batch
    monkeypatch.undo()
    result = run(config, quiet=True)
    assert numbers(tmp_path / "run") == numbers(finished.run_dir)
    assert result._replace(run_dir=finished.run_dir) == finished


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_saves_and_ends(
    small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr("sys.stdout", output)
        with pytest.raises(Interrupted, match="SIGPIPE; saved after step 1 of 6"):
            run(small(tmp_path / "run"))
    assert steps_kept(tmp_path / "run") == [1]


@pytest.mark.slow
def test_a_gated_optimizer_goes_on_bit_for_bit_and_reports_its_gate(
    small: Make, tmp_path: Path, stop_at: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
):
    fields = {"optimizer": MiMuon(threshold=0.02)}
    whole, parts = small(tmp_path / "whole", **fields), small(tmp_path / "parts", **fields)
    run(whole, quiet=True)
    stop_at(4)
    with pytest.raises(KeyboardInterrupt):
        run(parts, quiet=True)
    monkeypatch.undo()
    run(parts, quiet=True)
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    gates = [(tmp_path / name / "gates.bits").read_bytes() for name in ("parts", "whole")]
    assert gates[0] == gates[1]
    assert (tmp_path / "whole" / "gates.png").read_bytes().startswith(b"\x89PNG")
    rates = [line["gate_rate"] for line in numbers(tmp_path / "whole") if line["split"] == "train"]
    assert all(0 <= rate <= 1 for rate in rates)
    assert len(set(rates)) > 1


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped bit": lambda p: p.write_bytes(bytes([p.read_bytes()[0] ^ 1]) + p.read_bytes()[1:]),
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "emptied": lambda p: p.write_bytes(b""),
    "removed": lambda p: p.unlink(),
}


@pytest.mark.parametrize("kind", slow_except("truncated", DAMAGE))
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    kind: str, finished: Result, small: Make, copied: Path, capsys: pytest.CaptureFixture[str]
):
    largest = max(
        (p for p in (copied / "checkpoints" / "6").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    DAMAGE[kind](largest)
    run(small(copied), quiet=True)
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: checkpoint {copied / 'checkpoints' / '6'} is damaged")
    assert largest.name in warning
    assert numbers(copied) == numbers(finished.run_dir)
    assert (copied / "checkpoints-damaged" / "6-1").is_dir()
    assert steps_kept(copied) == [4, 6]


def test_without_an_intact_checkpoint_the_run_starts_over(
    finished: Result, small: Make, copied: Path, capsys: pytest.CaptureFixture[str]
):
    (copied / "checkpoints" / "4" / INTEGRITY).write_text("{}")
    (copied / "checkpoints" / "6" / INTEGRITY).unlink()
    run(small(copied), quiet=True)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert f"{INTEGRITY} is missing" in warnings[0]
    assert "does not belong to it" in warnings[1]
    assert numbers(copied) == numbers(finished.run_dir)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"steps": 5}, "steps is 6 there and 5 here"),
        ({"optimizer": OPTIMIZERS["muon"]()}, "optimizer is AdamW there and Muon here"),
        ({"optimizer": OPTIMIZERS["adamw"]()}, "optimizer.learning_rate is 0.01 there and 0.003"),
    ],
)
def test_another_configuration_is_refused_and_nothing_is_touched(
    fields: dict[str, Any], message: str, finished: Result, small: Make
):
    before = {p: p.stat().st_mtime_ns for p in finished.run_dir.rglob("*")}
    with pytest.raises(BadInput, match=message) as raised:
        run(small(finished.run_dir, **fields), quiet=True)
    assert "choose another --run-dir" in str(raised.value)
    assert {p: p.stat().st_mtime_ns for p in finished.run_dir.rglob("*")} == before


def test_other_data_is_refused(finished: Result, small: Make, text_file: Path, tmp_path: Path):
    config = small(finished.run_dir)
    original = text_file.read_text()
    text_file.write_text(original.replace("7", "8"))
    try:
        with pytest.raises(BadInput, match="the data changed since"):
            run(config, quiet=True)
    finally:
        text_file.write_text(original)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": {}}'])
def test_an_unreadable_configuration_is_refused(content: str, small: Make, tmp_path: Path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(BadInput, match="unreadable"):
        run(small(tmp_path), quiet=True)


@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh(finished: Result, small: Make, copied: Path):
    shutil.rmtree(copied / "checkpoints" / "6")
    run(small(copied, mesh="data=2", keep_checkpoints=5, checkpoint_every=6), quiet=True)
    before, after = numbers(finished.run_dir), numbers(copied)
    assert after[:7] == before[:7]
    assert [line["step"] for line in after] == [line["step"] for line in before]
    losses = [[line["loss"] for line in lines] for lines in (before, after)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_a_run_moves_from_eight_devices_to_one(
    small: Make, tmp_path: Path, stop_at: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
):
    run(small(tmp_path / "whole", steps=8, mesh="data=8"), quiet=True)
    for devices in (8, 4, 2):
        stop_at(3)  # after two saved steps on each mesh
        with pytest.raises(KeyboardInterrupt):
            run(small(tmp_path / "parts", steps=8, mesh=f"data={devices}"), quiet=True)
        monkeypatch.undo()
    run(small(tmp_path / "parts", steps=8, mesh="data=1"), quiet=True)
    before, after = numbers(tmp_path / "whole"), numbers(tmp_path / "parts")
    assert [line["step"] for line in after] == [line["step"] for line in before]
    np.testing.assert_allclose(
        [line["loss"] for line in after], [line["loss"] for line in before], rtol=1e-6
    )


def test_the_products_of_a_run_have_its_precision(
    small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def products(config: Any, quiet: bool) -> Any:
        return str(jax.make_jaxpr(lambda x: x @ x)(jnp.ones((2, 2))))

    monkeypatch.setattr(loop, "_run", products)
    found = {p: str(run(small(tmp_path, precision=p))) for p in ("default", "high", "highest")}
    assert {p: re.findall(r"precision=(.*)", text) for p, text in found.items()} == {
        "default": [],
        "high": ["(Precision.HIGH, Precision.HIGH)"],
        "highest": ["(Precision.HIGHEST, Precision.HIGHEST)"],
    }


def test_a_second_process_is_refused(small: Make, copied: Path):
    with (
        run_directory.locked(copied),
        pytest.raises(BadInput, match="another process is training in"),
    ):
        run(small(copied), quiet=True)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 4, 5 and 6 have a loss of NaN."""

    def poisoned_step(state: State, *, task: Task, **keywords: Any) -> Any:
        def loss(params: Any, model_state: Any, batch: Any, key: Any, step: Any) -> Any:
            value, aux = task.loss(params, model_state, batch, key, step)
            return jnp.where((step >= 3) & (step < 6), jnp.nan, value), aux

        return jit_step(state, task=task._replace(loss=loss), **keywords)

    monkeypatch.setattr(loop, "jit_step", poisoned_step)


def test_a_step_without_a_finite_loss_is_skipped_and_told(
    small: Make, tmp_path: Path, poisoned: None
):
    result = run(small(tmp_path / "run"), quiet=True)
    lines = numbers(tmp_path / "run")
    training = [line for line in lines if line["split"] == "train"]
    assert [line["skipped"] for line in training] == [0, 0, 0, 1, 2, 3]
    assert [line["loss"] is None for line in training] == [False] * 3 + [True] * 3
    validation = [line["loss"] for line in lines if line["split"] == "validation"]
    assert validation[1] != validation[2] == validation[3] == result.validation_loss
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert (tmp_path / "run" / "loss.png").exists()


@pytest.mark.slow
def test_too_many_skipped_steps_end_the_run_with_its_state_saved(
    small: Make, tmp_path: Path, poisoned: None, monkeypatch: pytest.MonkeyPatch
):
    config = small(tmp_path / "run", max_skipped_steps=2, steps=8)
    with pytest.raises(TrainingStopped, match=r"2 consecutive steps.*of 8.*--optimizer.learning-"):
        run(config, quiet=True)
    lines = numbers(tmp_path / "run")
    last = [line for line in lines if line["split"] == "train"][-1]
    assert last["skipped"] in (2, 3)  # the next step may have been dispatched
    assert steps_kept(tmp_path / "run")[-1] == lines[-1]["step"]
    monkeypatch.undo()
    assert run(config, quiet=True).steps == 8
    assert numbers(tmp_path / "run")[: len(lines)] == lines


@pytest.mark.slow
def test_one_device_and_two_train_alike(finished: Result, small: Make, tmp_path: Path):
    run(small(tmp_path / "run", mesh="data=2"), quiet=True)
    alone, together = numbers(finished.run_dir), numbers(tmp_path / "run")
    # Sums over the batch are rounded in another order; observed: 4e-7.
    np.testing.assert_allclose(
        [line["loss"] for line in together], [line["loss"] for line in alone], rtol=1e-5
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"mesh": "data=2"},
        {"mesh": "data=1", "optimizer": MiMuon(threshold=0.02)},
    ],
    ids=["adamw", "mimuon"],
)
@pytest.mark.slow
def test_a_step_compiles_once_and_reuses_the_state(
    fields: dict[str, Any], small: Make, tmp_path: Path
):
    config = small(tmp_path, **fields)
    mesh = make_mesh(config.mesh)
    task = config.task(mesh)
    optimizer, schedule = make_optimizer(config.optimizer, steps=6, matrices=task.matrices)
    state = make_state(task, optimizer, mesh, seed=0)
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.device_set == set(mesh.devices.flat)
    step = jit_step(state, task=task, optimizer=optimizer, schedule=schedule, seed=0)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "/compile/" in event else None
    )
    for index in range(3):
        old, seen = state, len(compiled)
        state, _ = step(state, split_batch(task.batches[index], batch_sharding(mesh)))
        jax.block_until_ready(state)
        assert (len(compiled) > seen) == (index == 0)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
    assert int(state.step) == 3


def test_a_step_draws_by_seed_and_number_and_carries_what_is_not_trained(
    small: Make, tmp_path: Path
):
    def loss(params: Any, model_state: Any, batch: Any, key: Any, step: Any) -> Any:
        return (params * batch).sum(), (model_state + 1, {"draw": jax.random.uniform(key)})

    task = small(tmp_path).task(make_mesh("data=1"))._replace(loss=loss)
    optimizer, schedule = make_optimizer(OPTIMIZERS["adamw"](), steps=6, matrices=None)

    def draws(seed: int) -> list[float]:
        params = jnp.ones(2)
        state = State(jnp.int32(0), jnp.int32(0), params, jnp.int32(0), optimizer.init(params))
        drawn = []
        for step in range(3):
            state, metrics = train_step(
                state, jnp.ones(2), task=task, optimizer=optimizer, schedule=schedule, seed=seed
            )
            drawn.append(float(metrics["draw"]))
            assert int(state.step) == int(state.model_state) == step + 1
            assert metrics["gradient_norm"] == pytest.approx(2**0.5)
            assert metrics["learning_rate"] == pytest.approx(float(schedule(step)))
        return drawn

    assert draws(0) == draws(0)
    assert len({*draws(0), *draws(1)}) == 6


def test_the_environment_is_recorded_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    run_directory.record_environment(tmp_path)
    assert json.loads((tmp_path / "environment.jsonl").read_text())["git_revision"] is None


@pytest.mark.slow
def test_the_command_line_trains_resumes_and_says_when_it_is_done(
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stop_at: Callable[[int], None],
):
    command = (
        f"lm --steps 6 --batch-size 8 --evaluate-every 2 --data.path {text_file} --mesh data=1 "
        "--data.sequence-length 16 --model.hidden-size 16 --model.intermediate-size 32 "
        "--model.num-hidden-layers 2 --model.num-attention-heads 2 --model.num-key-value-heads 1 "
        "--model.head-dim 8 --sample.length 8 --optimizer adamw --optimizer.learning-rate 1e-2"
    ).split()
    monkeypatch.chdir(tmp_path)
    stop_at(4)
    assert cli.main(command) == 130
    assert capsys.readouterr().err.startswith("interrupted: the same command resumes")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "resuming after step 2" in shown
    assert "nats/byte" in shown
    assert (tmp_path / "runs" / "lm" / "result.json").exists()
    assert cli.main(command) == 0
    assert "runs/lm has finished: 6 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_the_demonstration_keeps_the_promise_of_its_preset(tmp_path: Path):
    config = presets.load("lm").CONFIG
    result = run(dataclasses.replace(config, run_dir=tmp_path / "lm", mesh="data=1"), quiet=True)
    assert 5.3 < result.initial_validation_loss < 5.7
    # Observed: 1.3775; the text differs a little between versions of Python.
    assert result.validation_loss < 1.6
