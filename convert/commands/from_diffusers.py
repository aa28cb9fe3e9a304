"""`fmv2 convert from-diffusers`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from convert.commands.transfer import Dtype, transfer


def from_diffusers(
    sources: Annotated[Positional[tuple[Path, ...]], arg(metavar="SRC [SRC ...]")],
    /,
    *,
    out: Path,
    dtype: Dtype | None = None,
) -> None:
    """Read PyTorch checkpoints into one model folder.

    Each source is told by its contents: a Stable Diffusion folder; upstream's model.bin or training
    checkpoint; an IP-Adapter-FaceID-PlusV2 file; a ControlNet, VAE or CLIP image encoder folder; an
    ArcFace file, .pth or ONNX; a LoRA.

    Args:
      sources: files and folders; later ones replace what earlier ones hold.
      out: the folder to write; free or empty.
      dtype: of the weights; each keeps its own when left out.
    """
    transfer(sources, out, dtype=dtype)
