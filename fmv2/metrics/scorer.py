"""The independent scorer: one small net that reads off a picture who is there, and what is seen.

It is trained on renders of the procedural world by `train.objectives.scorer`, and is neither a
condition of the model nor in its loss. Its trunk is the ResNet of
`fmv2.models.coefficient_encoder`, whose last map is not averaged, since where something is says as
much as what. A folder of its own keeps the net, `config.json` and `model.safetensors` under Flax's
names: PyTorch has no such net.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fmv2.errors import UserError
from fmv2.models.abstract import abstract
from fmv2.models.coefficient_encoder import CoefficientEncoderConfig, ResNet
from fmv2.models.layers import Options

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

_POSE, _CAMERA, _LIGHT = 6, 3, 27
_STRIDE = 32
"""Pixels of the picture per cell of the ResNet's last map."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """The shape of a scorer, and the world that it knows."""

    trunk: CoefficientEncoderConfig
    """The ResNet, the hidden layer behind it and the side of the pictures."""
    channels: int
    """That each cell of the ResNet's last map is squeezed into."""
    identity: tuple[str, ...]
    """Identity fields, each in standard deviations: the first shape coefficients of the head."""
    expression: tuple[str, ...]
    """Expression fields: the head's first expression coefficients."""
    classes: Mapping[str, tuple[str, ...]] = dataclasses.field(hash=False)
    """Of each attribute, its classes in their order."""
    person: tuple[str, ...]
    """The attributes that belong to the person, not to the picture."""
    camera: tuple[float, float, float]
    """The world's cameras in the middle."""
    camera_spread: tuple[float, float, float]
    """How far they are from it, about: the net tells a camera's difference in these units."""

    def __post_init__(self):
        if strangers := [name for name in self.person if name not in self.classes]:
            raise UserError(f"scorer config: person names {', '.join(strangers)}: no attribute")

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers that the net tells: identity, expression, pose, camera, light, and the logits of
        each attribute."""
        logits = [len(labels) for labels in self.classes.values()]
        return (len(self.identity), len(self.expression), _POSE, _CAMERA, _LIGHT, *logits)

    def to_config(self) -> dict[str, Any]:
        """`config.json`."""
        return {"_class_name": "Scorer", **dataclasses.asdict(self)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ScorerConfig":
        """From `config.json`.

        Raises:
          UserError: fields are missing or not understood.
        """
        try:
            trunk: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in config["trunk"].items()
            }
            return cls(
                trunk=CoefficientEncoderConfig(**trunk),
                channels=config["channels"],
                identity=tuple(config["identity"]),
                expression=tuple(config["expression"]),
                classes={name: tuple(labels) for name, labels in config["classes"].items()},
                person=tuple(config["person"]),
                camera=tuple(config["camera"]),
                camera_spread=tuple(config["camera_spread"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"scorer config: not understood: {error!r}") from error


class Reading(NamedTuple):
    """What a scorer reads off pictures; float32."""

    identity: Float[Array, "b i"]
    """In standard deviations of the world's people."""
    expression: Float[Array, "b e"]
    pose: Float[Array, "b 6"]
    """Head rotation, then the jaw's: axis times angle in radians."""
    camera: Float[Array, "b 3"]
    """See `fmv2.face.camera.project`."""
    light: Float[Array, "b 9 3"]
    """See `fmv2.face.shading.shade`."""
    logits: dict[str, Float[Array, "b n"]]
    """Of each attribute's classes."""


class Scorer(nnx.Module):
    """The net.

    Args:
      config: the shape.
      dtype: of the arithmetic; None is what pictures and weights promote to. Batch norms compute in
        float32, with their running statistics until `train()` is called.
      param_dtype: of the weights.
      rngs: of the initialisation.
    """

    def __init__(
        self,
        config: ScorerConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = Options(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.config = config
        trunk = config.trunk
        self.encoder = ResNet(trunk, **options)
        self.squeeze = nnx.Linear(trunk.features, config.channels, **options)
        cells = math.ceil(trunk.image_size / _STRIDE) ** 2
        self.hidden = nnx.Linear(cells * config.channels, trunk.hidden_size, **options)
        self.out = nnx.Linear(trunk.hidden_size, sum(config.counts), **options)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Reading:
        """
        Args:
          images: RGB in [0, 1], of the configuration's size.
        Raises:
          ValueError: images of another size.
        """
        size = self.config.trunk.image_size
        if images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"pictures must be (b, {size}, {size}, 3), got {images.shape}: resize them"
            )
        told = nnx.relu(self.squeeze(self.encoder.map(images))).reshape(len(images), -1)
        numbers = self.out(nnx.relu(self.hidden(told))).astype(jnp.float32)
        *ends, _ = itertools.accumulate(self.config.counts)
        identity, expression, pose, camera, light, *logits = jnp.split(numbers, ends, axis=-1)
        return Reading(
            identity=identity,
            expression=expression,
            pose=pose,
            camera=camera * jnp.array([self.config.camera_spread], jnp.float32)
            + jnp.array([self.config.camera], jnp.float32),
            light=light.reshape(-1, 9, 3),
            logits=dict(zip(self.config.classes, logits, strict=True)),
        )

    def embedding(self, reading: Reading) -> Float[Array, "b d"]:
        """Who it is, for cosines: about the same for two pictures of a person, and of two people
        at right angles on average.

        Identity fields, which are centred as they are; and the probabilities of what belongs to the
        person, less those of chance.
        """
        parts = [reading.identity]
        for name in self.config.person:
            chances = jax.nn.softmax(reading.logits[name])
            parts.append(_CLASS_WEIGHT * (chances - 1 / chances.shape[-1]))
        return jnp.concatenate(parts, axis=-1)


_CLASS_WEIGHT = 1.5
"""A class that is certain weighs as much as so many standard deviations of an identity field."""


def load_scorer(folder: Path) -> Scorer:
    """The scorer in a folder that `write_scorer` made, float32.

    Raises:
      UserError: files that are missing, broken, or do not go together; every fault is named.
    """
    try:
        config = ScorerConfig.from_config(json.loads((folder / CONFIG_FILE).read_text()))
        arrays = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: no scorer: {error}") from error
    graph, state = nnx.split(abstract(Scorer, config))
    leaves = {".".join(map(str, path)): x for path, x in nnx.to_flat_state(state)}
    if faults := _misfits(arrays, leaves):
        raise UserError(f"{folder}: {WEIGHTS_FILE} does not fit {CONFIG_FILE}: {'; '.join(faults)}")
    filled = [
        (path, x.replace(jnp.asarray(arrays[".".join(map(str, path))], jnp.float32)))
        for path, x in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def write_scorer(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray], folder: Path) -> None:
    """Writes a scorer into a folder that is there.

    Kernels are kept in float16; biases, norms and their statistics, which are few, as they are.

    Args:
      config: `ScorerConfig.to_config()`.
      arrays: weights and running statistics by their paths in the net.
    Raises:
      UserError: the two do not go together.
    """
    net = abstract(Scorer, ScorerConfig.from_config(config))
    leaves = {".".join(map(str, path)): x for path, x in nnx.to_flat_state(nnx.state(net))}
    if faults := _misfits(arrays, leaves):
        raise UserError("weights do not fit the scorer's config: " + "; ".join(faults))
    kept = {k: x.astype(np.float16) if x.ndim > 1 else x for k, x in arrays.items()}
    save_file(kept, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def _misfits(arrays: Mapping[str, np.ndarray], leaves: Mapping[str, Any]) -> list[str]:
    """What is missing, unknown or of another shape."""
    faults = [f"{name} is missing" for name in leaves if name not in arrays]
    faults += [f"{name} is unknown" for name in arrays if name not in leaves]
    return faults + [
        f"{name} is {arrays[name].shape}, expected {leaf.shape}"
        for name, leaf in leaves.items()
        if name in arrays and arrays[name].shape != leaf.shape
    ]
