"""The weights of `AutoencoderKL`, diffusers' names."""

from convert.rules import CONV, CONV1X1_AS_LINEAR, LINEAR, Rule, Table


def _norm(torch: str) -> tuple[Rule, ...]:
    return Rule(f"{torch}.weight", f"{torch}.scale"), Rule(f"{torch}.bias", f"{torch}.bias")


def _conv(torch: str) -> tuple[Rule, ...]:
    return Rule(f"{torch}.weight", f"{torch}.kernel", CONV), Rule(f"{torch}.bias", f"{torch}.bias")


def _conv1x1(torch: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{torch}.weight", f"{torch}.kernel", CONV1X1_AS_LINEAR),
        Rule(f"{torch}.bias", f"{torch}.bias"),
    )


def _attention(torch: str, flax: str, old: str) -> tuple[Rule, ...]:
    """A projection of the attention block, and its name in files older than diffusers 0.15."""
    at = "{path}.attentions.{i}."
    return (
        Rule(f"{at}{torch}.weight", f"{at}{flax}.kernel", LINEAR, (f"{at}{old}.weight",)),
        Rule(f"{at}{torch}.bias", f"{at}{flax}.bias", aliases=(f"{at}{old}.bias",)),
    )


VAE = Table(
    rules=(
        *_norm("{path}.norm{i}"),
        *_norm("{path}.group_norm"),
        *_norm("{path}.conv_norm_out"),
        *_conv("{path}.conv_in"),
        *_conv("{path}.conv{i}"),
        *_conv("{path}.conv"),
        *_conv("{path}.conv_out"),
        *_conv1x1("{path}.conv_shortcut"),
        *_conv1x1("quant_conv"),
        *_conv1x1("post_quant_conv"),
        *_attention("to_q", "to_q", "query"),
        *_attention("to_k", "to_k", "key"),
        *_attention("to_v", "to_v", "value"),
        *_attention("to_out.0", "to_out", "proj_attn"),
    )
)
