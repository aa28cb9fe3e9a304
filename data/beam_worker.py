"""`python -m data.beam_worker`: Beam's own worker process, quiet, and no longer than its parent."""

import logging
import os
import signal
import threading
import time


def main() -> None:
    """Works until Beam or the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and stops us in order
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # Several processes cannot share one accelerator, and it is the parent's.
    os.environ["JAX_PLATFORMS"] = "cpu"
    logging.disable(logging.CRITICAL)  # failures reach the parent by another way
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main([])


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


if __name__ == "__main__":
    main()
