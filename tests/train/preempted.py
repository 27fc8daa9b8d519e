"""One of two processes that train together until a signal; started by `test_preemption.py`."""

import contextlib
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.sharding import AxisType, NamedSharding

from train.checkpoints import Checkpoints
from train.interruption import Interruption
from train.step import State


def main(coordinator: str, index: int, directory: Path) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(coordinator, num_processes=2, process_id=index)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    count = jax.device_put(jnp.int32(0), everywhere)
    w = jax.make_array_from_process_local_data(split, np.arange(4.0, dtype=np.float32))
    state = State(step=count, skipped=count, params={"w": w}, model_state={}, opt_state=())
    advance = jax.jit(lambda s: s._replace(step=s.step + 1, params={"w": s.params["w"] + 1}))
    saved = Checkpoints(directory, keep=2, best=("loss", "min"), warn=print)
    with contextlib.closing(saved), Interruption() as interruption:
        state = saved.restore(state) or state
        done = int(state.step)
        while True:
            state, done = advance(state), done + 1
            received = interruption.requested(done)
            if received or done % 20 == 0:
                saved.save(done, state)
            if received:
                print(done, received.name)
                break
            time.sleep(0.005)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
