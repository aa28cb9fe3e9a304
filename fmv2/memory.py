"""Memory for XLA on a CPU: taken once, and kept.

A program takes its temporaries from malloc at each run, in pieces of up to a gigabyte. glibc would
map such a piece anew each time, and the system zeroes it page by page, on a virtual machine perhaps
after it has asked the host for each. Here they come out of the heap, which is kept; and since only
the first thread's heap holds pieces of any size, programs run in that thread.
"""

import os
import sys

_TUNABLES = "GLIBC_TUNABLES"
_KEPT = {"hugetlb": 1, "mmap_threshold": 2**32, "trim_threshold": 2**33}
"""glibc's: huge pages where the system has them for the asking; pieces of fewer bytes come out of
the heap; as much of it may be free before any of it is given back."""


def keep_heap() -> None:
    """Starts the process again in such a way, which glibc hears of in no other; nothing where that
    has been done, or GLIBC_TUNABLES is the user's own."""
    if sys.platform == "linux" and sys.executable and _TUNABLES not in os.environ:
        told = ":".join(f"glibc.malloc.{name}={value}" for name, value in _KEPT.items())
        os.execve(sys.executable, sys.orig_argv, os.environ | {_TUNABLES: told})


def run_in_this_thread() -> None:
    """Programs for a CPU run in the thread that calls them. Before JAX's first program; on other
    devices it changes nothing."""
    import jax  # late: who only wants help need not wait for it

    jax.config.update("jax_cpu_enable_async_dispatch", False)
