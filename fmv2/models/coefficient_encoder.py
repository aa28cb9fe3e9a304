"""A photo's 3D head in numbers: the coarse encoder of DECA, a ResNet-50 and two linear layers.

Papers: Feng et al. 2021 (DECA); He et al. 2016 (ResNet; its stride is on the 3×3 convolution, as in
torchvision). Equals DECA's `ResnetEncoder` in eval mode. Layout NHWC. Batch norms use their running
statistics, until `train()` is called.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple, Self, Unpack

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fmv2.errors import UserError
from fmv2.models.layers import Options, batch_norm, unbiased_conv

_STAGES = 4
_EXPANSION = 4
"""What leaves a block is so many times as wide as its inside."""


class Coefficients(NamedTuple):
    """A 3D head, see `fmv2.face.flame` and `fmv2.face.camera`; the fields in the net's order."""

    shape: Float[Array, "b 100"]
    texture: Float[Array, "b 50"]
    expression: Float[Array, "b 50"]
    pose: Float[Array, "b 6"]
    """Head rotation, then the jaw's: axis times angle in radians."""
    camera: Float[Array, "b 3"]
    light: Float[Array, "b 9 3"]


COUNTS = (100, 50, 50, 6, 3, 27)
"""Numbers in each of these fields."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoefficientEncoderConfig:
    """The shape of a coefficient encoder."""

    layers: tuple[int, int, int, int]
    """Blocks of each stage; the first block of each but the first halves the map."""
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    """Inside the blocks of each stage; the stage's output is four times as wide."""
    hidden_size: int = 1024
    image_size: int = 224
    """Side in pixels of the crop that the camera belongs to."""

    def __post_init__(self):
        faults = [
            f"{name} must be {_STAGES} whole numbers above 0, got {counts}"
            for name, counts in (("layers", self.layers), ("widths", self.widths))
            if len(counts) != _STAGES or min(counts) < 1
        ]
        faults += [
            f"{name} must be at least {least}, got {value}"
            for name, value, least in (
                ("hidden_size", self.hidden_size, 1),
                ("image_size", self.image_size, 2 ** (_STAGES + 1)),
            )
            if value < least
        ]
        if faults:
            raise UserError("coefficient encoder config: " + "; ".join(faults))

    @property
    def features(self) -> int:
        """Numbers that the ResNet makes of a crop."""
        return _EXPANSION * self.widths[-1]

    @classmethod
    def deca(cls) -> Self:
        """DECA's: 25,848,108 parameters."""
        return cls(layers=(3, 4, 6, 3))

    @classmethod
    def embedded(cls) -> Self:
        """The embedded default's: 369,148 parameters."""
        return cls(layers=(1, 2, 2, 1), widths=(16, 24, 48, 64), hidden_size=256, image_size=128)

    @classmethod
    def tiny(cls) -> Self:
        """Every part at a size for tests."""
        return cls(layers=(1, 2, 1, 1), widths=(4, 6, 8, 10), hidden_size=12, image_size=64)

    def to_config(self) -> dict[str, Any]:
        """The `config.json` of this net, which has no other: DECA's file holds weights alone."""
        fields = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }
        return {"_class_name": "CoefficientEncoder", **fields}


class Bottleneck(nnx.Module):
    """1×1, 3×3 (stride), 1×1 convolutions, each normed; beside them the input, brought to size."""

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        stride: int,
        **options: Unpack[Options],
    ):
        out_channels = _EXPANSION * width
        self.conv1 = unbiased_conv(channels, width, 1, 1, options)
        self.bn1 = batch_norm(width, options)
        self.conv2 = unbiased_conv(width, width, 3, stride, options)
        self.bn2 = batch_norm(width, options)
        self.conv3 = unbiased_conv(width, out_channels, 1, 1, options)
        self.bn3 = batch_norm(out_channels, options)
        self.downsample = nnx.List(
            [
                unbiased_conv(channels, out_channels, 1, stride, options),
                batch_norm(out_channels, options),
            ]
            if stride > 1 or channels != out_channels
            else []
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        for layer in self.downsample:
            x = layer(x)
        return nnx.relu(x + y)


class ResNet(nnx.Module):
    """Crops to one vector each: the mean of the last map."""

    def __init__(self, config: CoefficientEncoderConfig, **options: Unpack[Options]):
        widths, outer = config.widths, [_EXPANSION * width for width in config.widths]
        self.conv1 = unbiased_conv(3, widths[0], 7, 2, options)
        self.bn1 = batch_norm(widths[0], options)
        entering = (widths[0], *outer)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nnx.List(
                [Bottleneck(channels, width, stride=1 if first else 2, **options)]
                + [
                    Bottleneck(_EXPANSION * width, width, stride=1, **options)
                    for _ in range(count - 1)
                ]
            )
            for channels, width, count, first in zip(
                entering, widths, config.layers, (True, False, False, False), strict=False
            )
        )

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        x = self.map(images)
        return x.mean((1, 2), dtype=jnp.float32).astype(x.dtype)

    def map(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 d"]:
        """The last map, whose sides are a 32nd of the crops'."""
        x = nnx.relu(self.bn1(self.conv1(images)))
        padding: Any = ((1, 1), (1, 1))  # annotated as a name alone
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=padding)
        for block in itertools.chain(self.layer1, self.layer2, self.layer3, self.layer4):
            x = block(x)
        return x


class CoefficientEncoder(nnx.Module):
    """The encoder.

    Args:
      config: the shape.
      dtype: of the arithmetic; None is what images and weights promote to. Batch norms compute in
        float32.
      param_dtype: of the weights.
      rngs: of the initialisation.
    """

    def __init__(
        self,
        config: CoefficientEncoderConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = Options(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.config = config
        self.encoder = ResNet(config, **options)
        self.hidden = nnx.Linear(config.features, config.hidden_size, **options)
        self.out = nnx.Linear(config.hidden_size, sum(COUNTS), **options)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Coefficients:
        """The coefficients of the heads in these crops, float32.

        Args:
          images: RGB in [0, 1], of the configuration's size.
        Raises:
          ValueError: images of another size.
        """
        size = self.config.image_size
        if images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"crops must be (b, {size}, {size}, 3), got {images.shape}: resize them"
            )
        numbers = self.out(nnx.relu(self.hidden(self.encoder(images)))).astype(jnp.float32)
        *ends, _ = itertools.accumulate(COUNTS)
        found = Coefficients(*jnp.split(numbers, ends, axis=-1))
        return found._replace(light=found.light.reshape(-1, 9, 3))
