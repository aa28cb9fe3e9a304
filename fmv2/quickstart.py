"""`fmv2 quickstart`: a random tiny model of diffusers, carried to Flax and back."""

import tempfile
from pathlib import Path

from rich.console import Console

from fmv2.errors import UserError


def quickstart(*, out: Path | None = None) -> int:
    """Make a random tiny model with diffusers, convert it to Flax and back, and compare both.

    Args:
      out: the folder to keep the model in; free or empty. Nothing is kept when left out.
    """
    from convert import folder
    from convert.commands.transfer import transfer
    from convert.commands.verify import verify

    try:
        from convert.quiet import quiet

        quiet()
        from convert.random_model import write_sources
    except ImportError as e:
        raise UserError(f"quickstart runs PyTorch: pip install 'fmv2[torch]' ({e})") from e

    if out is not None:
        folder.refuse_taken(out)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as scratch:
        console.print("making a tiny Stable Diffusion with adapter and ShadingNet, all random")
        sources = write_sources(Path(scratch) / "torch")
        model = out or Path(scratch) / "model"
        transfer(sources, model, dtype=None)
        return verify(model)
