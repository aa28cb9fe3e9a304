"""`fmv2 convert to-diffusers`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from convert.commands.transfer import Dtype, transfer


def to_diffusers(
    source: Annotated[Positional[Path], arg(metavar="SRC")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    *,
    dtype: Dtype | None = None,
    upstream: bool = False,
) -> None:
    """Write a model as a folder that stock diffusers loads.

    Args:
      source: a model folder.
      out: the folder to write; free or empty.
      dtype: of the weights; each keeps its own when left out.
      upstream: add model.bin in the form of the published PyTorch code.
    """
    transfer([source], out, dtype=dtype, upstream=upstream)
