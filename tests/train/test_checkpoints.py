"""Checkpoints: which ones are kept, damage is found, and a kill at any moment loses none."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from jax.sharding import NamedSharding
from orbax.checkpoint import v1 as ocp

from train import checkpoints
from train.checkpoint_folder import best_step, reading, remove_checkpoint
from train.checkpoints import Checkpoints
from train.errors import BadInput, MachineError
from train.integrity import INTEGRITY, seal
from train.mesh import make_mesh
from train.step import State

LEAST = ("loss", "min")


def state(step: int, size: int = 64) -> State:
    """A state whose arrays are computed from the step."""
    values = jnp.arange(size, dtype=jnp.float32) * step
    return State(
        step=jnp.int32(step),
        skipped=jnp.int32(0),
        params={"w": values},
        model_state={},
        opt_state=(None, {"w": -values}),
    )


def opened(directory: Path, **arguments: Any) -> Checkpoints:
    """A folder of checkpoints; by default a damaged one fails the test."""
    return Checkpoints(directory, **{"keep": 2, "best": LEAST, "warn": pytest.fail} | arguments)


def steps_kept(directory: Path) -> list[str]:
    return sorted((p.name for p in directory.iterdir()), key=lambda name: int(name.split(".")[0]))


def save(saved: Checkpoints, *steps: int) -> None:
    for step in steps:
        saved.save(step, state(step))
    saved.close()


def assert_same(found: State | None, expected: State) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(("best", "winner"), [(LEAST, 4), (("accuracy", "max"), 2)])
def test_the_best_checkpoint_is_kept_beside_the_newest(best: Any, winner: int, tmp_path: Path):
    saved = opened(tmp_path, best=best)
    for step, loss in ((2, 3.0), (4, 1.0), (6, 2.0), (8, 2.5), (10, 2.4)):
        saved.evaluations[step] = {"loss": loss, "accuracy": 1 / step}
        saved.save(step, state(step))
    saved.close()
    assert steps_kept(tmp_path) == [str(winner), "8", "10"]
    assert best_step(tmp_path, best) == winner
    again = opened(tmp_path, best=best)
    assert_same(again.restore(state(0)), state(10))
    again.close()


def test_a_checkpoint_without_an_evaluation_is_kept_as_the_newest_alone(tmp_path: Path):
    saved = opened(tmp_path, keep=1)
    saved.save(1, state(1))
    saved.evaluations[2] = {"loss": 1.0}
    saved.save(2, state(2))
    save(saved, 3, 4)
    assert steps_kept(tmp_path) == ["2", "4"]


def test_a_checkpoint_that_is_read_is_kept_until_the_save_after(tmp_path: Path):
    save(opened(tmp_path, keep=1), 1)
    with reading(tmp_path / "1") as held, reading(tmp_path / "1") as held_twice:
        assert [held, held_twice] == [True, True]
        save(opened(tmp_path, keep=1), 2)
        assert steps_kept(tmp_path) == ["1", "2"]
    save(opened(tmp_path, keep=1), 3)
    assert steps_kept(tmp_path) == ["3"]


def test_a_checkpoint_that_is_being_removed_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "1").mkdir()
    seen: list[bool] = []

    def watched(path: Path, target: Path) -> None:
        with reading(path) as held:
            seen.append(held)

    monkeypatch.setattr(Path, "rename", watched)
    remove_checkpoint(tmp_path, 1)
    assert seen == [False]
    with reading(tmp_path / "2") as held:
        assert not held  # never existed


def test_a_checkpoint_of_an_earlier_release_is_restored(tmp_path: Path):
    expected = state(3)._replace(model_state={"mean": jnp.ones(4)}, average={"w": jnp.ones(2)})
    fields = expected._asdict()
    model = {name: fields.pop(name) for name in ("params", "average")}
    model["rest"] = fields.pop("model_state")
    ocp.save_checkpointables(str(tmp_path / "3"), {"model": model, "training": fields})
    seal(tmp_path / "3")
    saved = opened(tmp_path)
    assert_same(saved.restore(jax.tree.map(jnp.zeros_like, expected)), expected)
    saved.close()


def test_the_buffers_may_be_reused_while_a_checkpoint_is_written(tmp_path: Path):
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    expected = state(1, size=1_000_000)
    saved, now = opened(tmp_path), jax.tree.map(jnp.copy, expected)
    saved.save(1, now)
    for _ in range(3):
        now = overwrite(now)
    assert_same(saved.restore(now), expected)
    assert all(x.is_deleted() for x in jax.tree.leaves(now))
    saved.close()


@pytest.mark.parametrize("stage", ["written", "sealed", "renamed"])
def test_a_kill_while_a_checkpoint_is_finished_leaves_one_to_go_on_from(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def kill(*_: Any) -> Any:
        raise SystemExit

    with monkeypatch.context() as patch:
        saved = opened(tmp_path, keep=1)
        saved.save(1, state(1))
        saved.wait()
        if stage == "written":
            patch.setattr(checkpoints, "seal", kill)
        elif stage == "sealed":
            patch.setattr(Path, "rename", kill)
        else:
            patch.setattr(shutil, "rmtree", kill)
        saved.save(2, state(2))
        with pytest.raises(SystemExit):
            saved.close()
    left = {"written": "2.unsealed", "sealed": "2.unsealed", "renamed": "1.removed"}[stage]
    assert left in steps_kept(tmp_path)
    again = opened(tmp_path)  # no warnings: a kill does not damage a checkpoint
    assert_same(again.restore(state(0)), state(2 if stage == "renamed" else 1))
    assert left not in steps_kept(tmp_path)
    again.close()


def test_a_checkpoint_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(checkpoints, "seal", full)
    saved = opened(tmp_path)
    saved.save(1, state(1))
    with pytest.raises(MachineError, match=r"checkpoint of step 1 .*No space left on device"):
        saved.save(2, state(2))
    saved.close()
    assert opened(tmp_path).restore(state(0)) is None


def test_a_checkpoint_that_cannot_be_begun_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: str, parts: Any) -> None:
        raise ValueError(f"not\n{sorted(parts)}")

    saved = opened(tmp_path)
    saved.save(1, state(1))
    monkeypatch.setattr(checkpoints.ocp, "save_checkpointables_async", refuse)
    with pytest.raises(MachineError, match=r"checkpoint of step 2 .*\(not \['model'"):
        saved.save(2, state(2))
    assert_same(saved.restore(state(0)), state(1))
    saved.close()


@pytest.mark.parametrize("other", [state(1, size=5), state(1)._replace(params={"v": jnp.ones(64)})])
def test_a_checkpoint_of_another_model_is_refused(other: State, tmp_path: Path):
    saved = opened(tmp_path)
    save(saved, 1)
    with pytest.raises(BadInput, match="does not fit this program"):
        opened(tmp_path).restore(other)


def test_a_state_moves_to_fewer_and_to_more_devices(tmp_path: Path):
    before = None
    for step, devices in enumerate((8, 4, 2, 1, 8), start=1):
        layout = NamedSharding(make_mesh(f"data={devices}"), P("data"))
        everywhere = NamedSharding(layout.mesh, P())
        laid_out = jax.tree.map(
            lambda x, layout=layout, everywhere=everywhere: jax.device_put(
                x, layout if x.ndim else everywhere
            ),
            state(step),
        )
        saved = opened(tmp_path)
        restored = saved.restore(jax.tree.map(jnp.copy, laid_out))
        if before is not None:
            assert restored is not None
            assert_same(restored, before)
            assert restored.params["w"].sharding == layout
            assert restored.step.sharding == everywhere
        saved.save(step, laid_out)
        saved.close()
        before = laid_out


def _flip(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


DAMAGE: dict[str, Callable[[bytes, int], bytes]] = {
    "flipped bit": _flip,
    "truncated": lambda content, at: content[: at // 8],
    "emptied": lambda content, at: b"",
}


def test_forty_damages_are_detected_and_the_checkpoint_before_is_restored(tmp_path: Path):
    save(opened(tmp_path / "intact"), 1, 2)
    intact = tmp_path / "intact" / "2"
    files = sorted(p for p in intact.rglob("*") if p.is_file() and p.stat().st_size)
    draw = np.random.default_rng(0)
    for trial in range(40):
        kind = list(DAMAGE)[trial % len(DAMAGE)]
        file = files[trial % len(files)].relative_to(intact)
        shutil.copytree(tmp_path / "intact", tmp_path / str(trial))
        victim = tmp_path / str(trial) / "2" / file
        content = victim.read_bytes()
        victim.write_bytes(DAMAGE[kind](content, int(draw.integers(8 * len(content)))))
        warnings: list[str] = []
        damaged = opened(tmp_path / str(trial), warn=warnings.append)
        assert_same(damaged.restore(state(0)), state(1))
        damaged.close()
        (warning,) = warnings
        assert warning.startswith(f"checkpoint {tmp_path / str(trial) / '2'} is damaged"), kind
        assert file.name in warning or file.name == INTEGRITY, kind
        assert (tmp_path / f"{trial}-damaged" / "2-1").is_dir()
