"""Face-MakeUpV2 in JAX: Stable Diffusion that keeps an identity and obeys a shading map."""

__version__ = "0.1.0"
