"""Work on Apache Beam, one element at a time."""

import logging
import os
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from data import console
from fmv2.errors import UserError

LOCAL = "DirectRunner"


def run(
    work: Callable[[int], None],
    numbers: Sequence[int],
    runner: str,
    runner_options: Sequence[str],
    workers: int,
) -> None:
    """Calls `work` once for each number, somewhere.

    `work` is pickled; a number may be worked on twice where a runner repeats what failed.

    Args:
      runner: Beam's name for it; the DirectRunner stays on this machine.
      runner_options: Beam's own, as `name=value`, or `name` alone for a flag.
      workers: processes of the DirectRunner; one works inside this process.
    Raises:
      UserError: Beam is not installed, or knows no such runner or option.
    """
    if not numbers:
        return
    beam = _import()
    flags = [f"--{option.removeprefix('--')}" for option in runner_options]
    if runner == LOCAL:
        workers = min(workers, len(numbers))
        flags.append(f"--direct_num_workers={workers}")
    options = _options(flags)
    pipeline = beam.Pipeline(runner=_runner(runner, workers), options=options)
    _ = (
        pipeline
        | beam.Create(list(numbers), reshuffle=False)
        | beam.Reshuffle()
        | beam.Map(work).with_output_types(type(None))
    )
    previous, threading.excepthook = threading.excepthook, _on_thread_error
    try:
        pipeline.run().wait_until_finish()
    finally:
        threading.excepthook = previous


def workers(runner: str, asked: int | None) -> int:
    """How many processes to use: those asked for, or one per core.

    Raises:
      UserError: less than one; or any, of a runner that has its own workers.
    """
    if asked is None:
        return os.cpu_count() or 1
    if asked < 1:
        raise UserError(f"--workers is {asked}: expected 1 or more")
    if runner != LOCAL:
        raise UserError(
            f"--workers counts the {LOCAL}'s processes: give those of {runner} in --runner-options"
        )
    return asked


def _import() -> Any:
    logging.disable(logging.WARNING)  # what is said of Google's clients concerns nobody here
    try:
        import apache_beam
    except ImportError as error:
        raise UserError(
            "Apache Beam is not installed: pip install 'fmv2[prepare]' (its DirectRunner needs "
            "nothing else)"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    return apache_beam


def _options(flags: Sequence[str]) -> Any:
    from apache_beam.options.pipeline_options import PipelineOptions

    try:
        options = PipelineOptions(list(flags))
        known = options.get_all_options()
    except SystemExit as error:  # argparse has said what is wrong
        raise UserError("--runner-options: not as Beam expects them, see above") from error
    unknown = [flag for flag in flags if flag[2:].split("=")[0] not in known]
    if unknown:
        raise UserError(f"--runner-options: Beam knows no {', '.join(unknown)}")
    return options


def _runner(name: str, workers: int) -> Any:
    if name != LOCAL:
        from apache_beam.runners.runner import create_runner

        try:
            return create_runner(name)
        except (ImportError, ValueError, AttributeError) as error:
            raise UserError(f"--runner {name}: {error}") from error
    # Beam's own choice behind that name would first download the Prism runner.
    from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    if workers == 1:
        return FnApiRunner()
    command = f"exec {shlex.quote(sys.executable)} -m data.beam_worker"
    environment: Any = (
        SubprocessSDKEnvironment  # Beam's decorator hides its class from type checkers
    )
    return FnApiRunner(environment.from_command_string(command))


def _on_thread_error(args: Any) -> None:
    if args.thread is not None and args.thread.name == "run_worker":
        # Beam would wait for that worker for ever.
        console.die(
            f"{args.exc_value}: memory may have run out: start the same command again, with fewer "
            "--workers, and it goes on from here"
        )
    threading.__excepthook__(args)
