"""The weights of `AutoencoderKL`, diffusers' names."""

from convert.rules import LINEAR, Rule, Table, conv, conv1x1, norm


def _attention(torch: str, flax: str, old: str) -> tuple[Rule, ...]:
    """A projection of the attention block, and its name in files older than diffusers 0.15."""
    at = "{path}.attentions.{i}."
    return (
        Rule(f"{at}{torch}.weight", f"{at}{flax}.kernel", LINEAR, (f"{at}{old}.weight",)),
        Rule(f"{at}{torch}.bias", f"{at}{flax}.bias", aliases=(f"{at}{old}.bias",)),
    )


VAE = Table(
    rules=(
        *norm("{path}.norm{i}"),
        *norm("{path}.group_norm"),
        *norm("{path}.conv_norm_out"),
        *conv("{path}.conv_in"),
        *conv("{path}.conv{i}"),
        *conv("{path}.conv"),
        *conv("{path}.conv_out"),
        *conv1x1("{path}.conv_shortcut"),
        *conv1x1("quant_conv"),
        *conv1x1("post_quant_conv"),
        *_attention("to_q", "to_q", "query"),
        *_attention("to_k", "to_k", "key"),
        *_attention("to_v", "to_v", "value"),
        *_attention("to_out.0", "to_out", "proj_attn"),
    )
)
