"""Face-MakeUpV2 in JAX: faces that keep an identity and obey a shading map, on Stable Diffusion 1.5."""

__version__ = "0.1.0"
