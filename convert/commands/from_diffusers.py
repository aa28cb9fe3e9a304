"""`fmv2 convert from-diffusers`."""

from pathlib import Path

from tyro.conf import Positional

from convert.commands.transfer import Dtype, transfer


def from_diffusers(
    sources: Positional[tuple[Path, ...]], /, *, out: Path, dtype: Dtype | None = None
) -> None:
    """Read PyTorch checkpoints into one model folder.

    Args:
      sources: files and folders, each told by its contents: a Stable Diffusion folder;
        a model.bin, a training checkpoint or an IP-Adapter-FaceID-PlusV2 file; a ControlNet, a CLIP
        image encoder, an ArcFace file (.pth or ONNX), a LoRA. Later ones replace what earlier ones
        hold.
      out: the folder to write; free or empty.
      dtype: of the weights; each keeps its own when left out.
    """
    transfer(sources, out, dtype=dtype)
