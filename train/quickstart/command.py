"""The command of the main job on the embedded default, end to end."""

import sys
from pathlib import Path

from fmv2.errors import UserError

_STEPS = 520


def quickstart(*, out: Path = Path("quickstart"), steps: int = _STEPS) -> int:
    """Train Face-MakeUpV2 on made-up people, draw some whom it has never seen, export, compare.

    Makes records, trains IdAdapter and ShadingNet on the tiny Stable Diffusion that comes with
    fmv2, draws people held out, exports to diffusers, draws the same from the export in PyTorch,
    and measures all of it. OUT/grid.png is to be looked at and OUT/report.md to be read. Rerunning
    the same command goes on where it was.

    Args:
      out: the folder for all of it.
      steps: of training; more are better.
    """
    try:
        import torch  # noqa: F401  (told before minutes of work are done)
    except ImportError as e:
        raise UserError(
            f"quickstart draws with PyTorch too: pip install 'fmv2[torch]' ({e})"
        ) from e
    from train.quickstart.job import run

    try:
        return run(out, steps)
    except KeyboardInterrupt:
        sys.stderr.write(f"go on with: fmv2 quickstart --out {out} --steps {steps}\n")
        raise
