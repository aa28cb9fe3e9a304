"""`fmv2 convert to-diffusers`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from convert import runs
from convert.commands.transfer import Dtype, transfer
from fmv2.errors import UserError


def to_diffusers(
    source: Annotated[Positional[Path], arg(metavar="SRC")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    *,
    dtype: Dtype | None = None,
    upstream: bool = False,
    step: int | None = None,
    raw: bool = False,
    base: Path | None = None,
) -> None:
    """Write a model as a folder that stock diffusers loads.

    Of a training run the folder holds the nets of its base and those that it has trained.

    Args:
      source: a model folder, or the folder of a training run.
      out: the folder to write; free or empty.
      dtype: of the weights; each keeps its own when left out.
      upstream: add model.bin in the form of the published PyTorch code.
      step: of a run: which checkpoint; the newest when left out.
      raw: of a run: the weights themselves and not their running mean.
      base: of a run: where the model folder is that it began from; where it was when left out.
    """
    if runs.is_run(source):
        base = base or runs.base_of(source, step)
        if base is not None and not base.exists():
            raise UserError(
                f"{source}: began from {base}, which is not there: say where it is with --base"
            )
        trained = runs.source(source, step=step, raw=raw)
        transfer(
            [trained] if base is None else [base, trained], out, dtype=dtype, upstream=upstream
        )
        return
    if step is not None or raw or base is not None:
        raise UserError(f"{source}: is no training run: leave out --step, --raw and --base")
    transfer([source], out, dtype=dtype, upstream=upstream)
