"""`fmv2 convert verify`."""

from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from tyro.conf import Positional

from fmv2.errors import UserError


def verify(folder: Positional[Path], /, *, tolerance: float = 1e-4) -> int:
    """Run each component of a model folder in PyTorch and in Flax and compare.

    Exits 1 where a relative error is above the tolerance, or is not a number.

    Args:
      folder: what `from-diffusers` or `to-diffusers` wrote.
      tolerance: the largest relative error: max |flax - torch| / max |torch|.
    """
    try:
        from convert.quiet import quiet

        quiet()
        from convert.verification import compare
    except ImportError as e:
        raise UserError(f"verify runs PyTorch: pip install 'fmv2[torch]' ({e})") from e

    console = Console()
    with console.status("running PyTorch and Flax") as status:
        deviations = []
        for deviation in compare(folder):
            deviations.append(deviation)
            status.update(f"{deviation.component} done")
    table = Table(Column("component", no_wrap=True), "max absolute", "max relative", "")
    good = []
    for deviation in deviations:
        good.append(deviation.relative <= tolerance)
        table.add_row(
            deviation.component,
            f"{deviation.absolute:.2e}",
            f"{deviation.relative:.2e}",
            "ok" if good[-1] else "above tolerance",
        )
    console.print(table)
    return int(not all(good))
