"""``python -m benchmarks counts`` and ``python -m benchmarks time``."""

import argparse
from pathlib import Path

import jax


def main() -> None:
    """Parses the command line, measures, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    counts = commands.add_parser("counts", help="what one compiled step does, on 8 virtual devices")
    counts.add_argument("--model", default="0.6b", choices=["0.6b", "8b"])
    counts.add_argument("--layers", type=int, help="fewer layers than the model's")
    counts.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    counts.add_argument("--no-peer", action="store_true", help="leave optax out (minutes)")
    for command in (counts,):
        command.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    if arguments.command == "counts":
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", 8)
        from benchmarks.counts import rows
        from benchmarks.table import save, stream

        printed = stream(
            rows(arguments.model, arguments.layers, arguments.dtype, not arguments.no_peer)
        )
    if arguments.json:
        save(arguments.json, printed)


if __name__ == "__main__":
    main()
