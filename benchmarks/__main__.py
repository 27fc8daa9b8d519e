"""Counts and times of one optimizer step and of its baselines: a table, and JSON with --json."""

import argparse
import os
import signal
import sys
from pathlib import Path

from benchmarks import gpu
from benchmarks.isolated import Part

# XLA's scheduler for CPU runs independent work concurrently, whatever memory that takes. With it
# off, the temporaries are those of a backend that schedules for memory, as accelerators do.
_SCHEDULER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    counts = commands.add_parser("counts", help="what one compiled step does on 8 virtual devices")
    counts.add_argument("--model", default="0.6b", choices=["0.6b", "8b"])
    counts.add_argument("--layers", type=int, help="fewer layers than the model has")
    counts.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    counts.add_argument(
        "--no-baseline", action="store_true", help="leave out optax (saves half an hour)"
    )
    counts.add_argument(
        "--target",
        default="cpu",
        help="devices to compile for: cpu, tpu:v5e:2x4 or gpu:h100:8 (no such device is needed)",
    )
    history = commands.add_parser("history", help="draw docs/history.png, the counts of commits")
    history.add_argument("--add", action="store_true", help="count this commit first (a minute)")
    time = commands.add_parser("time", help="seconds of one step on one device")
    time.add_argument("--sets", nargs="*", help="names, in full or up to the comma; all by default")
    time.add_argument("--rounds", type=int, default=5)
    share = commands.add_parser("share", help="the optimizer's share of a training step")
    share.add_argument("--layers", type=int, default=2)
    share.add_argument("--batch", type=int, default=2, help="sequences")
    share.add_argument("--length", type=int, default=512, help="tokens per sequence")
    share.add_argument("--rounds", type=int, default=5)
    card = commands.add_parser("gpu", help="tests, times, shares and training on a GPU")
    card.add_argument("--rounds", type=int, default=5)
    card.add_argument("--tokens", type=Path, help="file of uint16 tokens to train on")
    card.add_argument("--tiny", action="store_true", help="small sizes, also without a GPU")
    card.add_argument("--minutes", type=float, default=gpu.MINUTES, help="for everything")
    memory = commands.add_parser("memory", help="peak of a training step on 8 virtual devices")
    memory.add_argument("--layers", type=int, help="fewer layers than the model has")
    memory.add_argument("--vocabulary", type=int, help="fewer tokens than the model has")
    memory.add_argument("--batch", type=int, default=16, help="sequences")
    memory.add_argument("--length", type=int, default=1024, help="tokens per sequence")
    faults = commands.add_parser("faults", help="runs under faults: what is lost, what is printed")
    faults.add_argument("--scale", type=int, default=1, help="times as many cases")
    faults.add_argument("--train", type=Path, help=argparse.SUPPRESS)  # one run, to be killed
    for command in (counts, history, time, share, card, memory, faults):
        command.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    if arguments.json and not arguments.json.parent.is_dir():
        parser.error(f"--json {arguments.json}: the folder does not exist")
    if arguments.command == "gpu" and arguments.tokens and not arguments.tokens.is_file():
        parser.error(f"--tokens {arguments.tokens} is not a file")
    if arguments.command in ("counts", "history", "memory"):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_SCHEDULER}"
    sys.exit(_on_gpu(arguments) if arguments.command == "gpu" else _measure(arguments))


def _on_gpu(arguments: argparse.Namespace) -> int:
    """Measures in other processes, since this one would keep the memory of the GPU to itself."""
    platform, names = gpu.card()
    if platform != "gpu" and not arguments.tiny:
        sys.exit(f"error: JAX found no GPU but {platform}; --tiny tries the command on it")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the processes of the parts, too
    import jax

    from benchmarks import table

    jax.config.update("jax_platforms", "cpu")
    size = gpu.TINY if arguments.tiny else gpu.FULL
    found = gpu.rows(size, arguments.rounds, arguments.tokens, 60 * arguments.minutes, platform)
    path = arguments.json or (None if arguments.tiny else gpu.default_path(names[0]))
    rows = table.stream(found, path, names)
    ended = [row.ended for row in rows if isinstance(row, Part)]
    return int(not all(end.startswith(("done", "skipped")) for end in ended))


def _measure(arguments: argparse.Namespace) -> None:
    """Prints rows as they are measured, and writes them to a file. JAX starts here."""
    import jax

    from benchmarks import table

    if arguments.command == "counts":
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", 8)
        from benchmarks.counts import rows

        found = rows(
            arguments.model,
            arguments.layers,
            arguments.dtype,
            not arguments.no_baseline,
            arguments.target,
        )
    elif arguments.command == "history":
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", 8)
        from benchmarks import history

        found = history.rows() if arguments.add else []
        if found:
            history.add(found)
        history.draw()
    elif arguments.command == "memory":
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", 8)
        from benchmarks.memory import rows

        found = rows(arguments.layers, arguments.vocabulary, arguments.batch, arguments.length)
    elif arguments.command == "faults":
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", 8)
        from benchmarks.disturbed import call
        from benchmarks.faults import KILLED, rows

        if arguments.train:
            sys.exit(call(arguments.train, steps=KILLED)[0])
        found = rows(arguments.scale)
    elif arguments.command == "time":
        from benchmarks.time import rows

        found = rows(arguments.sets, arguments.rounds)
    else:
        from benchmarks.training import shares

        found = shares(arguments.layers, arguments.batch, arguments.length, arguments.rounds)
    table.stream(found, arguments.json)


if __name__ == "__main__":
    main()
