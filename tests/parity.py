"""What parity tests share: random torch modules, their weights as a file, and distances."""

from collections.abc import Mapping
from typing import TypeVar

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from convert.engine import TensorRef
from tests.random_model import randomized

Module = TypeVar("Module", bound=torch.nn.Module)


def randomize_(module: Module, seed: int = 0) -> Module:
    """Every parameter and norm statistic random, in place; the module comes back in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomized(module)


def numpy(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's values, bit for bit; bfloat16 through ml_dtypes, which NumPy lacks."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def refs(state_dict: Mapping[str, torch.Tensor]) -> dict[str, TensorRef]:
    """A torch state dict as the converter sees a file."""
    arrays = {key: numpy(tensor) for key, tensor in state_dict.items()}
    return {key: TensorRef(a.shape, a.dtype, lambda a=a: a) for key, a in arrays.items()}


def relative_error(actual: ArrayLike | torch.Tensor, expected: ArrayLike | torch.Tensor) -> float:
    """max |actual - expected| / max |expected|.

    Raises:
      ValueError: the shapes differ, or a value is not finite.
    """
    actual, expected = (
        np.asarray(numpy(x) if isinstance(x, torch.Tensor) else x).astype(np.float64)
        for x in (actual, expected)
    )
    if actual.shape != expected.shape:
        raise ValueError(f"shapes must agree, got {actual.shape} and {expected.shape}")
    if not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        raise ValueError("values must be finite")
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def to_nchw(image: Float[Array, "b h w c"]) -> torch.Tensor:
    """Our image or feature map as torch has it."""
    return torch.from_numpy(np.array(image).transpose(0, 3, 1, 2).copy())


def to_nhwc(image: torch.Tensor) -> Float[Array, "b h w c"]:
    """Torch's image or feature map as we have it."""
    return jnp.asarray(numpy(image).transpose(0, 2, 3, 1))
