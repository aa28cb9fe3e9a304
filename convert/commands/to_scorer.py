"""`fmv2 convert to-scorer`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from convert import runs
from convert.folder import refuse_taken, written_whole
from fmv2.errors import UserError
from fmv2.metrics.scorer import write_scorer

NET = "scorer"
"""Its name among what a run trains."""


def to_scorer(
    run: Annotated[Positional[Path], arg(metavar="RUN")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    *,
    step: int | None = None,
) -> None:
    """Write the scorer that a run of tiny-scorer has trained, as a folder of its own.

    Args:
      run: the folder of the training run.
      out: the folder to write; free or empty.
      step: which checkpoint; the newest when left out.
    """
    refuse_taken(out)
    if not runs.is_run(run):
        raise UserError(f"{run}: is no training run: name the folder that --out of the run named")
    step = runs.choose(run, step)
    arrays = runs.arrays(run, NET, step=step)
    config = runs.read_json(run, step, runs.NETS)[NET]
    with written_whole(out) as folder:
        write_scorer(config, arrays, folder)
