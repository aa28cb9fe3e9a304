"""What CLIP's two towers have in common: the transformer, and how its shape is told.

Papers: Radford et al. 2021 (CLIP); Cherti et al. 2022 (OpenCLIP).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, Unpack

import jax
from flax import nnx
from jaxtyping import Array, Float

from fmv2.errors import UserError
from fmv2.models.attention import attention
from fmv2.models.config import check_fields
from fmv2.models.layers import Options, gelu


def quick_gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """x σ(1.702 x), OpenAI's approximation of gelu."""
    return x * jax.nn.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": gelu,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """What both towers have. Defaults are transformers' own, for fields that a file leaves out."""

    tower: ClassVar[str]

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_hidden_layers: int = 12
    projection_dim: int = 512
    """Width of the space that both towers are projected into."""
    hidden_act: str = "quick_gelu"
    """`quick_gelu` (OpenAI) or `gelu` (OpenCLIP)."""
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        fields = dataclasses.asdict(self)
        activation = fields.pop("hidden_act")
        faults = [
            f"{name}={value!r} is not supported, only a number"
            for name, value in fields.items()
            if not isinstance(value, int | float)
        ]
        if activation not in _ACTIVATIONS:
            faults.append(f"hidden_act={activation!r} is not supported, only {list(_ACTIVATIONS)}")
        if not faults and self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            faults.append(f"hidden_size {self.hidden_size} does not divide into {heads} heads")
        if faults:
            raise UserError(f"CLIP {self.tower} config: " + "; ".join(faults))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """From the `config.json` of transformers: of this tower, or of a whole `CLIPModel`.

        Raises:
          UserError: fields that ask for arithmetic this net does not have, all of them named.
        """
        kind = f"clip_{cls.tower}_model"
        if config.get("model_type") == "clip":
            # A tower's fields occur under either name; where under both, the second wins.
            parts = [config.get(f"{cls.tower}_config{end}") or {} for end in ("", "_dict")]
            projection_dim = config.get("projection_dim", cls.projection_dim)
            config = {**parts[0], **parts[1], "projection_dim": projection_dim, "model_type": kind}
        # Of the dozens of other fields that transformers writes, most of them for text generation,
        # only these would change the net.
        fixed = {"model_type": kind, "quantization_config": None}
        others = {name: config[name] for name in fixed if name in config}
        check_fields(f"CLIP {cls.tower}", others, read=(), fixed=fixed)
        names = [field.name for field in dataclasses.fields(cls)]
        fields: dict[str, Any] = {name: config[name] for name in names if name in config}
        return cls(**fields)

    def to_config(self) -> dict[str, Any]:
        """The `config.json` of transformers for this tower."""
        return {"model_type": f"clip_{self.tower}_model", **dataclasses.asdict(self)}


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, config: TowerConfig, *, causal: bool, **options: Unpack[Options]):
        dim = config.hidden_size
        self.heads = config.num_attention_heads
        self.causal = causal
        self.q_proj = nnx.Linear(dim, dim, **options)
        self.k_proj = nnx.Linear(dim, dim, **options)
        self.v_proj = nnx.Linear(dim, dim, **options)
        self.out_proj = nnx.Linear(dim, dim, **options)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        heads = (*x.shape[:2], self.heads, -1)
        query, key, value = (f(x).reshape(heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        y = attention(query, key, value, causal=self.causal)
        return self.out_proj(y.reshape(x.shape))


class MLP(nnx.Module):
    """Two linear layers with an activation between."""

    def __init__(self, config: TowerConfig, **options: Unpack[Options]):
        self.activation = _ACTIVATIONS[config.hidden_act]
        self.fc1 = nnx.Linear(config.hidden_size, config.intermediate_size, **options)
        self.fc2 = nnx.Linear(config.intermediate_size, config.hidden_size, **options)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.fc2(self.activation(self.fc1(x)))


class EncoderLayer(nnx.Module):
    """Attention and MLP, each normed before and added after."""

    def __init__(self, config: TowerConfig, *, causal: bool, **options: Unpack[Options]):
        self.layer_norm1 = layer_norm(config, options)
        self.self_attn = Attention(config, causal=causal, **options)
        self.layer_norm2 = layer_norm(config, options)
        self.mlp = MLP(config, **options)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nnx.Module):
    """The transformer of either tower."""

    def __init__(self, config: TowerConfig, *, causal: bool, **options: Unpack[Options]):
        self.layers = nnx.List(
            [
                EncoderLayer(config, causal=causal, **options)
                for _ in range(config.num_hidden_layers)
            ]
        )

    def __call__(self, x: Float[Array, "b t d"], depth: int | None = None) -> Float[Array, "b t d"]:
        """The state after `depth` layers; after all of them by default."""
        for layer in self.layers[:depth]:
            x = layer(x)
        return x


def layer_norm(config: TowerConfig, options: Options) -> nnx.LayerNorm:
    """A norm of a tower's state."""
    # The slower variance: residual streams of large towers have a few huge channels.
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, **options
    )


def embedding(count: int, config: TowerConfig, options: Options) -> nnx.Embed:
    """A table of `count` states."""
    init = nnx.initializers.normal(0.02)
    return nnx.Embed(count, config.hidden_size, embedding_init=init, **options)


def projection(config: TowerConfig, options: Options) -> nnx.Linear:
    """From a tower's state to the space that both are projected into."""
    return nnx.Linear(config.hidden_size, config.projection_dim, use_bias=False, **options)
