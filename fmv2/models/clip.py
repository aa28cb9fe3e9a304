"""CLIP's towers: the text encoder of Stable Diffusion, and the image encoder behind the identity.

Papers: Radford et al. 2021 (CLIP); Cherti et al. 2022 (OpenCLIP). Equal to transformers 5.23's
`CLIPTextModel`, `CLIPTextModelWithProjection` and `CLIPVisionModelWithProjection`. Images are NHWC,
normalised by CLIP's own mean and deviation.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from fmv2.errors import UserError
from fmv2.models.attention import attention
from fmv2.models.config import check_fields
from fmv2.models.layers import Options


def quick_gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """x σ(1.702 x), OpenAI's approximation of gelu."""
    return x * jax.nn.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}
# The first `eos_token_id` that transformers wrote was wrong: it stands for the rule used then.
_LEGACY_EOS = 2


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(TowerConfig):
    """The shape of a text tower."""

    tower = "text"

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = 49407
    """The token whose state is pooled: its first place. 2 (in files older than the fix) means the
    first place of the greatest token."""

    @classmethod
    def sd15(cls) -> Self:
        """Stable Diffusion 1.x: the text tower of OpenAI's ViT-L/14, 123,060,480 parameters."""
        return cls(
            hidden_size=768,
            intermediate_size=3072,
            num_attention_heads=12,
            projection_dim=768,
            eos_token_id=_LEGACY_EOS,
        )

    @classmethod
    def sd21(cls) -> Self:
        """Stable Diffusion 2.x: OpenCLIP's ViT-H/14 less its last layer, 340,387,840 parameters."""
        return cls(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=23,
            num_attention_heads=16,
            hidden_act="gelu",
            eos_token_id=_LEGACY_EOS,
        )

    @classmethod
    def tiny(cls) -> Self:
        """Every part at a size for tests."""
        return cls(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=24,
            vocab_size=100,
            max_position_embeddings=16,
            eos_token_id=99,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(TowerConfig):
    """The shape of a vision tower."""

    tower = "vision"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    """Side of the image in pixels; no other size is taken."""
    patch_size: int = 32

    @classmethod
    def vit_b32(cls) -> Self:
        """OpenAI's ViT-B/32: 87,849,216 parameters."""
        return cls()

    @classmethod
    def vit_l14(cls) -> Self:
        """OpenAI's ViT-L/14: 303,966,208 parameters."""
        return cls(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            projection_dim=768,
            patch_size=14,
        )

    @classmethod
    def vit_h14(cls) -> Self:
        """OpenCLIP's ViT-H/14, the one of IP-Adapter: 632,076,800 parameters."""
        return cls(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=16,
            projection_dim=1024,
            hidden_act="gelu",
            patch_size=14,
        )

    @classmethod
    def tiny(cls) -> Self:
        """Every part at a size for tests."""
        return cls(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            projection_dim=24,
            image_size=32,
            patch_size=8,
        )

    @property
    def tokens(self) -> int:
        """Patches of an image, and one for the class."""
        return (self.image_size // self.patch_size) ** 2 + 1


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
        self.layer_norm1 = _layer_norm(config, options)
        self.self_attn = Attention(config, causal=causal, **options)
        self.layer_norm2 = _layer_norm(config, options)
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


class TextEmbeddings(nnx.Module):
    """Tokens and their positions."""

    def __init__(self, config: CLIPTextConfig, **options: Unpack[Options]):
        self.token_embedding = _embedding(config.vocab_size, config, options)
        self.position_embedding = _embedding(config.max_position_embeddings, config, options)

    def __call__(self, input_ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        tokens, limit = input_ids.shape[1], self.position_embedding.num_embeddings
        if tokens > limit:
            raise ValueError(
                f"{tokens} tokens are more than the {limit} positions: truncate the text"
            )
        return self.token_embedding(input_ids) + self.position_embedding(jnp.arange(tokens))[None]


class CLIPTextOutput(NamedTuple):
    """What the text tower says of each token, and of the whole."""

    last_hidden_state: Float[Array, "b t d"]
    """After the final norm; the context of Stable Diffusion's cross-attention."""
    pooled: Float[Array, "b d"]
    """Its row at the end of the text."""


class CLIPTextModel(nnx.Module):
    """The text tower.

    Args:
      config: the shape.
      dtype: of the arithmetic; None is that of the weights. Norm statistics are float32.
      param_dtype: of the weights.
      rngs: of the initialisation.
    """

    def __init__(
        self,
        config: CLIPTextConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = Options(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.config = config
        self.embeddings = TextEmbeddings(config, **options)
        self.encoder = Encoder(config, causal=True, **options)
        self.final_layer_norm = _layer_norm(config, options)

    def __call__(self, input_ids: Int[Array, "b t"]) -> CLIPTextOutput:
        """The states of texts, each closed by the end token.

        Raises:
          ValueError: texts longer than the tower's positions.
        """
        x = self.final_layer_norm(self.encoder(self.embeddings(input_ids)))
        eos = self.config.eos_token_id
        scores = input_ids if eos == _LEGACY_EOS else input_ids == eos
        return CLIPTextOutput(x, x[jnp.arange(x.shape[0]), jnp.argmax(scores, axis=1)])


class CLIPTextModelWithProjection(nnx.Module):
    """The text tower, projected into the space that texts and images share.

    Arguments as of `CLIPTextModel`.
    """

    def __init__(
        self,
        config: CLIPTextConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = Options(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.config = config
        self.text_model = CLIPTextModel(config, **options)
        self.text_projection = _projection(config, options)

    def __call__(self, input_ids: Int[Array, "b t"]) -> Float[Array, "b p"]:
        """`text_embeds`, not normalised."""
        return self.text_projection(self.text_model(input_ids).pooled)


class VisionEmbeddings(nnx.Module):
    """A class token and the image's patches, with their positions."""

    def __init__(self, config: CLIPVisionConfig, **options: Unpack[Options]):
        size, dim = config.patch_size, config.hidden_size
        self.class_embedding = nnx.Param(
            dim**-0.5 * jax.random.normal(options["rngs"].params(), (dim,), options["param_dtype"])
        )
        self.patch_embedding = nnx.Conv(
            config.num_channels,
            dim,
            (size, size),
            strides=size,
            padding="VALID",
            use_bias=False,
            **options,
        )
        self.position_embedding = _embedding(config.tokens, config, options)

    def __call__(self, pixel_values: Float[Array, "b h w c"]) -> Float[Array, "b t d"]:
        patches = self.patch_embedding(pixel_values)
        batch, dim = patches.shape[0], patches.shape[-1]
        start = jnp.broadcast_to(self.class_embedding[...], (batch, 1, dim)).astype(patches.dtype)
        tokens = jnp.concatenate([start, patches.reshape(batch, -1, dim)], axis=1)
        return tokens + self.position_embedding(jnp.arange(tokens.shape[1]))[None]


class CLIPVisionModel(nnx.Module):
    """The vision tower up to, and with, its last norm."""

    def __init__(self, config: CLIPVisionConfig, **options: Unpack[Options]):
        self.config = config
        self.embeddings = VisionEmbeddings(config, **options)
        # The misspelling is that of every file.
        self.pre_layrnorm = _layer_norm(config, options)
        self.encoder = Encoder(config, causal=False, **options)
        self.post_layernorm = _layer_norm(config, options)

    def hidden_state(
        self, pixel_values: Float[Array, "b h w c"], depth: int
    ) -> Float[Array, "b t d"]:
        """The state after `depth` layers; 0 is their input."""
        size, channels = self.config.image_size, self.config.num_channels
        if pixel_values.shape[1:] != (size, size, channels):
            raise ValueError(
                f"images must be (b, {size}, {size}, {channels}), got {pixel_values.shape}: "
                "resize and crop them"
            )
        return self.encoder(self.pre_layrnorm(self.embeddings(pixel_values)), depth)


class CLIPVisionOutput(NamedTuple):
    """An image as one vector."""

    image_embeds: Float[Array, "b p"]
    """Projected into the space that texts and images share; not normalised."""
    pooled: Float[Array, "b d"]
    """The class token after the last norm, before the projection."""


class CLIPVisionModelWithProjection(nnx.Module):
    """The vision tower, projected into the space that texts and images share.

    Args:
      config: the shape.
      dtype: of the arithmetic; None is what images and weights promote to. Norm statistics are
        float32.
      param_dtype: of the weights.
      rngs: of the initialisation.
    """

    def __init__(
        self,
        config: CLIPVisionConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = Options(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.config = config
        self.vision_model = CLIPVisionModel(config, **options)
        self.visual_projection = _projection(config, options)

    def __call__(self, pixel_values: Float[Array, "b h w c"]) -> CLIPVisionOutput:
        """The vectors of images, which CLIP's processor has cropped and normalised.

        Raises:
          ValueError: images of another size than the configuration's.
        """
        last = self.hidden_state(pixel_values, -1)
        pooled = self.vision_model.post_layernorm(last[:, 0])
        return CLIPVisionOutput(self.visual_projection(pooled), pooled)

    def hidden_state(
        self, pixel_values: Float[Array, "b h w c"], index: int
    ) -> Float[Array, "b t d"]:
        """One entry of transformers' `hidden_states`; the layers behind it are not computed.

        Args:
          pixel_values: as in a call.
          index: 0 is the input of the first layer, n the output of the n-th; from the end if
            negative. Face-MakeUpV2 and IP-Adapter Plus take -2.
        Raises:
          ValueError: images of another size; an index out of range.
        """
        layers = self.config.num_hidden_layers
        if not -layers - 1 <= index <= layers:
            raise ValueError(f"index must be in [{-layers - 1}, {layers}], got {index}")
        return self.vision_model.hidden_state(pixel_values, index % (layers + 1))


def _layer_norm(config: TowerConfig, options: Options) -> nnx.LayerNorm:
    # The slower variance: residual streams of large towers have a few huge channels.
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, **options
    )


def _embedding(count: int, config: TowerConfig, options: Options) -> nnx.Embed:
    init = nnx.initializers.normal(0.02)
    return nnx.Embed(count, config.hidden_size, embedding_init=init, **options)


def _projection(config: TowerConfig, options: Options) -> nnx.Linear:
    return nnx.Linear(config.hidden_size, config.projection_dim, use_bias=False, **options)
