"""The face recogniser whose embedding is the identity: IResNet-50 and -100.

Papers: Deng et al. 2019 (ArcFace); Duta et al. 2020 (the residual block). Equals the IResNet of
insightface's arcface_torch in eval mode. Layout NHWC. Batch norms use their running statistics,
until `train()` is called.
"""

import dataclasses
from typing import Self, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fmv2.errors import UserError
from fmv2.models.layers import Options, batch_norm, unbiased_conv

_STAGES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArcFaceConfig:
    """The shape of an IResNet."""

    layers: tuple[int, int, int, int]
    """Blocks of each stage; the first block of each halves the map."""
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    embedding_size: int = 512
    image_size: int = 112
    """Side in pixels of the aligned face; its last map is flattened, so that no other is taken."""

    def __post_init__(self):
        faults = [
            f"{name} must be {_STAGES} whole numbers above 0, got {counts}"
            for name, counts in (("layers", self.layers), ("widths", self.widths))
            if len(counts) != _STAGES or min(counts) < 1
        ]
        if self.image_size < 1 or self.image_size % 2**_STAGES:
            faults.append(f"image_size must be a multiple of {2**_STAGES}, got {self.image_size}")
        if faults:
            raise UserError("ArcFace config: " + "; ".join(faults))

    @classmethod
    def r50(cls) -> Self:
        """IResNet-50: 43,590,848 parameters."""
        return cls(layers=(3, 4, 14, 3))

    @classmethod
    def r100(cls) -> Self:
        """IResNet-100: 65,156,160 parameters."""
        return cls(layers=(3, 13, 30, 3))

    @classmethod
    def embedded(cls) -> Self:
        """The embedded default's: 1,120,168 parameters."""
        return cls(layers=(1, 1, 2, 1), widths=(24, 48, 64, 96), image_size=64)

    @classmethod
    def tiny(cls) -> Self:
        """Every part at a size for tests."""
        return cls(layers=(1, 2, 1, 1), widths=(4, 6, 8, 10), embedding_size=12, image_size=32)

    @property
    def map_size(self) -> int:
        """Side of the last map."""
        return self.image_size // 2**_STAGES


def normalize(embedding: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """The embedding at length 1, float32: dot products are cosines.

    A zero vector stays zero; equals torch.nn.functional.normalize.
    """
    wide = embedding.astype(jnp.float32)
    squared = jnp.square(wide).sum(-1, keepdims=True)
    return wide * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


class PReLU(nnx.Module):
    """x where positive, else x times its channel's slope."""

    def __init__(self, channels: int, *, param_dtype: DTypeLike):
        self.weight = nnx.Param(jnp.full(channels, 0.25, param_dtype))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        slope = self.weight[...].astype(x.dtype)
        return jnp.where(x >= 0, x, slope[None, None, None] * x)


class Block(nnx.Module):
    """Norm, convolution, norm, PReLU, convolution, norm; beside it the input, brought to size."""

    def __init__(
        self, channels: int, out_channels: int, *, halves: bool, **options: Unpack[Options]
    ):
        stride = 2 if halves else 1
        self.bn1 = batch_norm(channels, options)
        self.conv1 = unbiased_conv(channels, out_channels, 3, 1, options)
        self.bn2 = batch_norm(out_channels, options)
        self.prelu = PReLU(out_channels, param_dtype=options["param_dtype"])
        self.conv2 = unbiased_conv(out_channels, out_channels, 3, stride, options)
        self.bn3 = batch_norm(out_channels, options)
        self.downsample = nnx.List(
            [
                unbiased_conv(channels, out_channels, 1, stride, options),
                batch_norm(out_channels, options),
            ]
            if halves
            else []
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        y = self.bn3(self.conv2(y))
        for layer in self.downsample:
            x = layer(x)
        return x + y


class ArcFace(nnx.Module):
    """The recogniser.

    Args:
      config: the shape.
      dtype: of the arithmetic; None is what images and weights promote to. Batch norms compute in
        float32.
      param_dtype: of the weights.
      rngs: of the initialisation.
    """

    def __init__(
        self,
        config: ArcFaceConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = Options(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        widths = config.widths
        self.config = config
        self.conv1 = unbiased_conv(3, widths[0], 3, 1, options)
        self.bn1 = batch_norm(widths[0], options)
        self.prelu = PReLU(widths[0], param_dtype=param_dtype)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nnx.List(
                [Block(channels, width, halves=True, **options)]
                + [Block(width, width, halves=False, **options) for _ in range(count - 1)]
            )
            for channels, width, count in zip(
                (widths[0], *widths), widths, config.layers, strict=False
            )
        )
        self.bn2 = batch_norm(widths[-1], options)
        self.fc = nnx.Linear(config.map_size**2 * widths[-1], config.embedding_size, **options)
        self.features = batch_norm(config.embedding_size, options)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Embeddings of aligned faces, as trained; `normalize` them to compare.

        Args:
          images: RGB in [-1, 1], aligned to ArcFace's five points, of the configuration's size.
        Raises:
          ValueError: images of another size.
        """
        size = self.config.image_size
        if images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"faces must be (b, {size}, {size}, 3), got {images.shape}: align them to that size"
            )
        x = self.prelu(self.bn1(self.conv1(images)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = block(x)
        x = self.bn2(x)
        return self.features(self.fc(x.reshape(x.shape[0], -1)))
