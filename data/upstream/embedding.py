"""Identity embeddings as upstream saves them: one torch tensor a file."""

import io

import numpy as np
from etils import epath
from jaxtyping import Float

from data.upstream.layout import BadItem
from data.upstream.pictures import read_bytes
from fmv2.errors import UserError

LENGTH = 512


def read(path: epath.Path) -> Float[np.ndarray, "512"]:
    """The embedding, its length as it is. No pickle is run: only tensors are read.

    Raises:
      BadItem: missing, corrupt, of another length, not finite, or nothing but zeros.
      UserError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "torch is not installed, and embeddings are its files: pip install 'fmv2[torch]'"
        ) from error
    encoded = read_bytes(path)
    try:
        found = torch.load(io.BytesIO(encoded), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a bad file
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BadItem(f"{path} is not a tensor that torch saved: {why}") from error
    if not isinstance(found, torch.Tensor) or tuple(found.shape) not in {(1, LENGTH), (LENGTH,)}:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise BadItem(f"{path} holds {shape}: expected a tensor (1, {LENGTH})")
    embedding = found.detach().to(torch.float32).reshape(-1).numpy()
    if not np.isfinite(embedding).all():
        raise BadItem(f"{path} has numbers that are not finite: compute it anew")
    if not embedding.any():
        raise BadItem(f"{path} is all zeros, as where no face was found: compute it anew")
    return embedding
