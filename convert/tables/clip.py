"""The weights of CLIP's towers, transformers' names.

Written with the towers' prefixes, which every version of transformers loads. `CLIPTextModel` of
version 5 itself writes its names without one: these are aliases.
"""

from convert.rules import CONV, LINEAR, Ignore, Rule, Table, linear, norm, prefixed

_LAYER = "encoder.layers.{i}"
_ENCODER = (
    *(
        rule
        for name in ("q", "k", "v", "out")
        for rule in linear(f"{_LAYER}.self_attn.{name}_proj")
    ),
    *linear(f"{_LAYER}.mlp.fc{{j}}"),
    *norm(f"{_LAYER}.layer_norm{{j}}"),
    Rule("embeddings.position_embedding.weight", "embeddings.position_embedding.embedding"),
)
_TEXT = (
    *_ENCODER,
    Rule("embeddings.token_embedding.weight", "embeddings.token_embedding.embedding"),
    *norm("final_layer_norm"),
)
_VISION = (
    *_ENCODER,
    Rule("embeddings.class_embedding", "embeddings.class_embedding"),
    Rule("embeddings.patch_embedding.weight", "embeddings.patch_embedding.kernel", CONV),
    *norm("pre_layrnorm"),
    *norm("post_layernorm"),
)


def _ignores(tower: str, other: str, *projections: str) -> tuple[Ignore, ...]:
    counter = "the numbers 0, 1, 2, ...: a buffer of older versions"
    rest = "of a whole CLIP, which this tower does not need"
    return (
        Ignore(f"{tower}.embeddings.position_ids", counter),
        Ignore(f"{other}.{{path}}", rest),
        *(Ignore(f"{name}.weight", rest) for name in projections),
        Ignore("logit_scale", rest),
    )


CLIP_TEXT = Table(
    rules=tuple(
        Rule(f"text_model.{rule.torch}", rule.flax, rule.layout, aliases=(rule.torch,))
        for rule in _TEXT
    ),
    ignores=_ignores("text_model", "vision_model", "visual_projection", "text_projection"),
)
CLIP_TEXT_WITH_PROJECTION = Table(
    rules=(
        *prefixed(_TEXT, "text_model.", "text_model."),
        Rule("text_projection.weight", "text_projection.kernel", LINEAR),
    ),
    ignores=_ignores("text_model", "vision_model", "visual_projection"),
)
CLIP_VISION = Table(
    rules=(
        *prefixed(_VISION, "vision_model.", "vision_model."),
        Rule("visual_projection.weight", "visual_projection.kernel", LINEAR),
    ),
    ignores=_ignores("vision_model", "text_model", "text_projection"),
)
