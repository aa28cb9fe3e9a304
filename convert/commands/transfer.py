"""What both directions of `fmv2 convert` do: read sources through our nets, write one folder."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from convert import folder
from convert.kinds import Source

Dtype = Literal["float32", "float16", "bfloat16"]

_console = Console(stderr=True)


def transfer(
    sources: Sequence[Path | Source], out: Path, *, dtype: Dtype | None, upstream: bool = False
) -> None:
    """Reads the sources, which must make a whole model, and writes its folder.

    Raises:
      UserError: whatever the user can mend; nothing has been written then.
    """
    folder.refuse_taken(out)
    assembly = folder.assemble(sources)
    for note in assembly.notes:
        _console.print(f"note: {note}", highlight=False, soft_wrap=True)
    size = sum(
        math.prod(ref.shape) * ref.dtype.itemsize
        for part in assembly.parts.values()
        for ref in part.tensors.values()
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=_console, transient=True, disable=not _console.is_terminal
    ) as progress:
        reading = progress.add_task("reading", total=size)
        model = folder.read(assembly, on_read=lambda n: progress.advance(reading, n))
        writing = progress.add_task("writing", total=None)
        folder.write(
            model,
            out,
            dtype=None if dtype is None else jnp.dtype(dtype),
            upstream=upstream,
            on_write=lambda n: progress.advance(writing, n),
        )
    _console.print(f"wrote {out}", highlight=False, soft_wrap=True)
