"""The loop: a batch, a step, and what a person sees of it. Rerunning the same command resumes.

Metrics are read one step late: while the devices work on a step, the host looks at the one before,
and so never keeps them waiting.
"""

import signal
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from convert import runs
from data.dataset import Dataset
from fmv2.fingerprint import fingerprint
from fmv2.parallel import initialize_distributed
from train.checkpoint import About, Checkpoints, digest, good
from train.checks import check_inputs, fingerprints
from train.config import TrainConfig, to_dict
from train.report import Report
from train.run import TRAIN, Run, prepare
from train.samples import make_sampler
from train.step import Metrics
from train.stop import Stop
from train.trace import Trace
from train.validate import make_validation

_MOST_KEYS = 64


class Flight(NamedTuple):
    """A step that the devices may still be working on."""

    number: int
    """Updates made with it."""
    metrics: Metrics
    records: jax.Array
    """Their numbers in the split."""
    loader: bytes
    """Where the loader was before its batch."""


class NotFiniteError(Exception):
    """A loss or gradient is infinite or not a number; the state has not changed since before it."""

    def __init__(self, flight: Flight, metrics: Mapping[str, Any]):
        super().__init__(f"step {flight.number}")
        self.flight = flight
        self.metrics = metrics


def train(config: TrainConfig, *, until: int | None = None) -> int:
    """Trains until all steps are made; the last line says the digest of the state.

    Args:
      until: or until so many are, at the learning rates of all of them.
    Returns:
      the exit status: 0; 1 after a loss that was not finite; 128 and the signal's number where one
      ended the run. The state has been saved in each case.
    Raises:
      UserError: what the user can mend.
      KeyboardInterrupt: Ctrl-C after the last step; all is saved.
    """
    initialize_distributed(config.hosts)
    console = Console(stderr=True, quiet=jax.process_index() != 0)
    run, state = prepare(config, console)
    about = _about(run)
    first = run.resumes_at or 0
    last = config.steps if until is None else min(until, config.steps)
    if first:
        check_inputs(config, first, about.inputs)
    assert config.out is not None  # prepare has seen to it
    with (
        Checkpoints(config.out, config.keep_last, config.keep_every) as checkpoints,
        run.loader(TRAIN) as loader,
        Report(run, console, first) as report,
        Trace(config) as trace,
        Stop() as stop,
    ):
        if first:
            state, position = checkpoints.restore(first, state)
            loader.restore(position)
            report.say(f"resumed at step {first}")
        validate, sample = make_validation(run), make_sampler(run)
        asked, flight, number = None, None, first
        try:
            while number < last and not asked:
                number += 1
                trace.begins(number)
                before = loader.state()
                with report.waiting():
                    batch = next(loader)
                state, metrics = run.step(state, run.frozen, batch)
                landing, flight = flight, Flight(number, metrics, batch.index, before)
                _land(landing, report, trace)
                asked, ends = stop.asked(number), number == last
                if asked or ends or _due(number, config):
                    _land(flight, report, trace)
                    flight = None
                with report.aside():
                    if asked or ends or _every(config.checkpoint_every, number):
                        checkpoints.save(number, state, loader.state(), about)
                    if validate and _every(config.report.validate_every, number):
                        report.scalars(number, validate(state))
                    if sample and _every(config.report.sample_every, number):
                        report.image(number, "samples", sample(state))
        except NotFiniteError as error:
            number, state = error.flight.number - 1, good(state)
            report.say(_complaint(error, run.dataset))
            if number:
                checkpoints.save(number, state, error.flight.loader, about)
            outcome, status = f"not finite at step {number + 1}: ended", 1
        else:
            outcome, status = (
                (f"ended by {signal.Signals(asked).name}", 128 + asked) if asked else ("done", 0)
            )
        checkpoints.wait()
    _say_last(outcome, number, config, digest(state))
    if not status:
        stop.pass_on()
    return status


def _land(flight: Flight | None, report: Report, trace: Trace) -> None:
    """Waits for a step and looks at its metrics.

    Raises:
      NotFiniteError: they are not.
    """
    if flight is None:
        return
    metrics = jax.device_get(flight.metrics)
    trace.landed(flight.number)
    if not metrics.pop("ok"):
        raise NotFiniteError(flight, metrics)
    report.step(flight.number, metrics)


def _about(run: Run) -> About:
    config = run.config
    inputs = fingerprints(run.dataset, run.tokens) | {"base": fingerprint(run.frozen)}
    trained = {name: run.shapes.configs[name] for name in config.objective.trained}
    return About(config=to_dict(config), inputs=inputs, nets=runs.describe(trained))


def _due(number: int, config: TrainConfig) -> bool:
    """Whether anything but training is to be done after a step."""
    report = config.report
    every = (config.checkpoint_every, report.validate_every, report.sample_every)
    return any(_every(steps, number) for steps in every)


def _every(steps: int, number: int) -> bool:
    return bool(steps) and number % steps == 0


def _complaint(error: NotFiniteError, dataset: Dataset) -> str:
    """What was not finite, and the records of its batch."""
    terms = ", ".join(f"{name} {float(value):g}" for name, value in error.metrics.items())
    records = error.flight.records
    if not records.is_fully_addressable:
        records = multihost_utils.process_allgather(records, tiled=True)
    numbers = np.asarray(records).tolist()
    keys = ", ".join(dataset.key(TRAIN, number) for number in numbers[:_MOST_KEYS])
    more = f" and {len(numbers) - _MOST_KEYS} more" if len(numbers) > _MOST_KEYS else ""
    return (
        f"step {error.flight.number} is not finite: {terms}; its records: {keys}{more}. The state"
        f" before it is kept: look at the records, or begin another run with a smaller"
        " --optimizer.learning-rate"
    )


def _say_last(outcome: str, number: int, config: TrainConfig, digest: str) -> None:
    """The last line of every run, on standard output."""
    resumes = "; rerun the same command to resume" if outcome.startswith("ended") else ""
    if jax.process_index() == 0:
        Console().print(
            f"{outcome} at step {number} of {config.steps}{resumes}; state sha256 {digest}",
            highlight=False,
            soft_wrap=True,
        )
