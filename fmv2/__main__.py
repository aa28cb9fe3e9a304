"""The process of the `fmv2` command, or of `python -m fmv2`."""

import os
import sys

from fmv2.memory import keep_heap


def run() -> int | None:
    """Runs the command line in a process that keeps its memory, and returns its exit status.

    After Ctrl-C it does not return: threads of Orbax and XLA are amid their work then, and would
    complain or crash while the interpreter is taken down around them.
    """
    keep_heap()
    from fmv2.cli import INTERRUPTED, main  # late: not before the process has been started again

    status = main()
    if status == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(run())
