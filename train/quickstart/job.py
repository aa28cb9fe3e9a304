"""The stages of the quickstart. Each leaves something in OUT and is skipped where that is there.

OUT/drawn/              pictures of made-up people
OUT/records/            the same, encoded by the base's VAE
OUT/run/                IdAdapter and ShadingNet, trained on the tiny base: the whole objective
OUT/run-no-map/         fewer steps of the same without the map term, to compare with
OUT/model/              the export
OUT/grid.png report.json report.md
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from convert import runs
from convert.commands.to_diffusers import to_diffusers
from data.commands.encode import encode
from data.commands.synth import synth
from data.procedural.world import World
from fmv2.assets import TINY
from fmv2.errors import UserError
from fmv2.tokens import EMBEDDED
from train.config import ReportConfig, TrainConfig
from train.loop import train
from train.presets.tiny import tiny

SIZE = 128
PEOPLE, PICTURES = 320, 2
"""In the records, with so many pictures each: the face that a record shows the model is cut from
the other one, since from the same it would learn hat, pose and light instead of the person."""
SEED = 2
"""Of the records. The base learnt from those of another seed, so all these people are new to it."""
SHARE = 10
"""The run without the map term makes one step in so many."""

_BEGUN = "quickstart.json"


class Stage(NamedTuple):
    """Something to be done once."""

    title: str
    done: Callable[[Path], bool]
    do: Callable[[Path], int | None]
    """Returns the exit status of what did not end well."""


def world() -> World:
    """The people of the quickstart."""
    count = PEOPLE * PICTURES
    return World(
        seed=SEED,
        count=count,
        size=SIZE,
        images_per_identity=PICTURES,
        tokenizer=EMBEDDED,
        faces="other",
    )


def run(out: Path, steps: int) -> int:
    """Does what is not done yet.

    Args:
      out: the folder: free, or begun with the same number of steps.
      steps: of training.
    Returns:
      the exit status.
    Raises:
      UserError: what the user can mend.
    """
    if steps < SHARE:
        raise UserError(f"--steps is {steps}: expected {SHARE} or more")
    out = out.absolute()  # a name such as quickstart/model could be one on the hub, too
    console = Console(stderr=True)
    begun = _begin(out, steps)
    stages = _stages(steps)
    for number, stage in enumerate(stages, 1):
        if stage.done(out):
            continue
        console.print(f"{number}/{len(stages)} {stage.title}", style="bold", highlight=False)
        start = time.monotonic()
        with _compiled_once(out / "cache"):
            status = stage.do(out)
        if status:
            return status
        begun["seconds"][stage.title] = round(time.monotonic() - start, 1)
        _write(out / _BEGUN, begun)
    console.print(f"look at {out / 'grid.png'} and read {out / 'report.md'}", highlight=False)
    return 0


@contextlib.contextmanager
def _compiled_once(folder: Path) -> Iterator[None]:
    """What is compiled is kept in a folder: for an interrupted run, and for the processes that draw
    records, whose program the last stage has a use for."""
    option, variable = "jax_compilation_cache_dir", "JAX_COMPILATION_CACHE_DIR"
    before, inherited = getattr(jax.config, option), os.environ.get(variable)
    jax.config.update(option, str(folder))
    os.environ[variable] = str(folder)
    try:
        yield
    finally:
        jax.config.update(option, before)
        del os.environ[variable]
        os.environ |= {} if inherited is None else {variable: inherited}


def few(steps: int) -> int:
    """Steps of the run without the map term; the other run has a checkpoint of as many."""
    return steps // SHARE


def _stages(steps: int) -> tuple[Stage, ...]:
    whole, bare = _runs(steps)
    return (
        Stage(
            f"making records of {PEOPLE} people",
            lambda out: (out / "drawn" / "dataset_info.json").is_file(),
            lambda out: synth(
                out=str(out / "drawn"),
                count=PEOPLE * PICTURES,
                size=SIZE,
                seed=SEED,
                images_per_identity=PICTURES,
                faces="other",
            ),
        ),
        Stage(
            "encoding their pictures",
            lambda out: (out / "records" / "dataset_info.json").is_file(),
            lambda out: encode(str(out / "drawn"), model=TINY, out=str(out / "records"), size=SIZE),
        ),
        _training("training IdAdapter and ShadingNet", "run", whole, steps),
        _training("training without the map term, to compare", "run-no-map", bare, few(steps)),
        Stage(
            "exporting to diffusers",
            lambda out: (out / "model").is_dir(),
            lambda out: to_diffusers(out / "run", out / "model", base=TINY),
        ),
        Stage(
            "drawing people held out, and measuring",
            lambda out: (out / "report.md").is_file(),
            lambda out: _judge(out, steps),
        ),
    )


def _runs(steps: int) -> tuple[TrainConfig, TrainConfig]:
    """The whole objective, and the same without what asks for masks; one program trains both."""
    preset = tiny()
    whole = dataclasses.replace(
        preset,
        objective=dataclasses.replace(preset.objective, latents="record"),
        steps=steps,
        base=TINY,
        checkpoint_every=few(steps),
        keep_every=few(steps),
        report=ReportConfig(validate_every=0, sample_every=0),
    )
    return whole, dataclasses.replace(whole, drops=dataclasses.replace(whole.drops, masks="always"))


def _training(title: str, name: str, config: TrainConfig, until: int) -> Stage:
    def done(out: Path) -> bool:
        return until in runs.steps(out / name)

    def do(out: Path) -> int:
        places = {"data": str(out / "records"), "out": str(out / name)}
        return train(dataclasses.replace(config, **places), until=until)

    return Stage(title, done, do)


def _judge(out: Path, steps: int) -> None:
    from train.quickstart.verdict import write_verdict  # late: it takes seconds

    begun = json.loads((out / _BEGUN).read_text())
    spent = {f"seconds of {title}": seconds for title, seconds in begun["seconds"].items()}
    write_verdict(out, world(), few(steps), {"steps": steps, "seed": SEED, **spent})


def _begin(out: Path, steps: int) -> dict[str, Any]:
    """What the folder was begun with, which must be this.

    Raises:
      UserError: the folder is somebody else's, or of another number of steps.
    """
    path = out / _BEGUN
    if path.is_file():
        begun = json.loads(path.read_text())
        if begun["steps"] != steps:
            raise UserError(
                f"{out}: was begun with --steps {begun['steps']}, not {steps}: give the same to go"
                " on, or name another --out"
            )
        return begun
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not a quickstart's: name another --out")
    out.mkdir(parents=True, exist_ok=True)
    begun = {"steps": steps, "seconds": {}}
    _write(path, begun)
    return begun


def _write(path: Path, content: Any) -> None:
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(content, indent=2) + "\n")
    scratch.replace(path)
