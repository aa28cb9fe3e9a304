"""CLIP's text tower: the text encoder of Stable Diffusion 1.x and 2.x.

Equal to transformers 5.23's `CLIPTextModel` and `CLIPTextModelWithProjection`.
"""

import dataclasses
from typing import NamedTuple, Self, Unpack

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from fmv2.models.clip import Encoder, TowerConfig, embedding, layer_norm, projection
from fmv2.models.layers import Options

# The first `eos_token_id` that transformers wrote was wrong: it stands for the rule used then.
_LEGACY_EOS = 2


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
    def embedded(cls) -> Self:
        """The embedded default's, whose tokenizer has 1273 words: 966,144 parameters."""
        return cls(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            projection_dim=128,
            vocab_size=1273,
            eos_token_id=1272,
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


class TextEmbeddings(nnx.Module):
    """Tokens and their positions."""

    def __init__(self, config: CLIPTextConfig, **options: Unpack[Options]):
        self.token_embedding = embedding(config.vocab_size, config, options)
        self.position_embedding = embedding(config.max_position_embeddings, config, options)

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
        self.final_layer_norm = layer_norm(config, options)

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
        self.text_projection = projection(config, options)

    def __call__(self, input_ids: Int[Array, "b t"]) -> Float[Array, "b p"]:
        """`text_embeds`, not normalised."""
        return self.text_projection(self.text_model(input_ids).pooled)
