"""Ctrl-C that is not lost.

Python swallows an exception in a callback on garbage, in one of a weak reference and in `__del__`.
JAX has such a callback, and after a long compile the signal is often delivered in it: the program
would go on as if nothing had been said.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_DEAF = {"_xla_gc_callback", "__del__"}
_DEAF_MODULES = {"weakref", "_weakrefset"}
_LATER = 0.05  # seconds


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """While it lasts, SIGINT raises KeyboardInterrupt as ever, but where that would be swallowed a
    moment later. What somebody else does at SIGINT, such as to ignore it, stays.
    """
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not ours:
        yield
        return
    before = signal.signal(signal.SIGALRM, _raise)
    signal.signal(signal.SIGINT, _raise)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, before)


def _raise(_: int, frame: FrameType | None) -> None:
    within = frame
    while within is not None:
        module = within.f_globals.get("__name__")
        if within.f_code.co_name in _DEAF or module in _DEAF_MODULES:
            signal.setitimer(signal.ITIMER_REAL, _LATER)
            return
        within = within.f_back
    raise KeyboardInterrupt
