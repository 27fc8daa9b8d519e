"""`python -m train`."""

import sys
from pathlib import Path


def _main() -> int:
    """The command line; Control-C while its modules are imported is one line, too."""
    # Before the working directory, which may have a package `models` of its own.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    try:
        from train.cli import main
    except KeyboardInterrupt:
        print("interrupted: before anything was started", file=sys.stderr)
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(_main())
