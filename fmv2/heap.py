"""The C library's heap, kept for the next step of a program on the CPU."""

import ctypes

# Parameters of glibc's mallopt, from its malloc.h.
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -8, -4, -1, -2
_SETTINGS = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 2**26}
"""One heap for all threads, nothing mapped beside it, nothing given back."""


def keep_heap() -> None:
    """Lets what is freed stay with this process.

    XLA takes the temporaries of a program from malloc and frees them when it is done. By default
    glibc maps such large pieces anew each time, and the system fills them with zeros page by page:
    in the quickstart 212,000 pages and a fifth of the processor's time at each step.

    To be called before JAX starts its threads, which else have chosen heaps of their own. Without
    glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _SETTINGS.items():
            mallopt(parameter, value)
