"""The process of the `fmv2` command, or of `python -m fmv2`."""

import os
import sys

_TUNABLES = "GLIBC_TUNABLES"
_HUGE_PAGES = "glibc.malloc.hugetlb=1"


def run() -> int | None:
    """Runs the command line where memory comes in huge pages, and returns its exit status.

    XLA on a CPU takes the temporaries of a program from malloc at each run, and glibc maps such
    large pieces anew: the system then zeroes them page by page, in a step of the quickstart 212,000
    times. With huge pages it is some 600 times. glibc reads this when a process starts, so the
    process is started again; whoever has set GLIBC_TUNABLES is left alone.
    """
    if sys.platform == "linux" and sys.executable and _TUNABLES not in os.environ:
        os.execve(sys.executable, sys.orig_argv, os.environ | {_TUNABLES: _HUGE_PAGES})
    from fmv2.cli import main  # late: not before the process has been started again

    return main()


if __name__ == "__main__":
    sys.exit(run())
