"""The process of the `fmv2` command, or of `python -m fmv2`."""

import sys

from fmv2.memory import keep_heap


def run() -> int | None:
    """Runs the command line in a process that keeps its memory, and returns its exit status."""
    keep_heap()
    from fmv2.cli import main  # late: not before the process has been started again

    return main()


if __name__ == "__main__":
    sys.exit(run())
