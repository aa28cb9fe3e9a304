"""How much XLA is to make of a program: it may take longer over one than it can save."""

from typing import Any

import jax

_UNTUNED = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
"""Else XLA compiles several kernels for each product on a GPU, times them, and takes the best."""
_LARGE = 5 * 10**7
"""Less than Stable Diffusion's VAE has alone, more than the embedded default has in all."""


def options(weights: int) -> dict[str, Any]:
    """Compiler options for what runs many times.

    Args:
      weights: of the whole model. With few, a GPU's best kernels are not worth the minutes that
        choosing them takes.
    """
    return _UNTUNED if jax.default_backend() == "gpu" and weights < _LARGE else {}


def options_for_once() -> dict[str, Any]:
    """Compiler options for what runs once."""
    match jax.default_backend():
        case "gpu":
            return _UNTUNED
        case "cpu":
            return {"xla_backend_optimization_level": 0}  # LLVM's
        case _:
            return {}
