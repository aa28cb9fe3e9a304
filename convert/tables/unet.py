"""The U-Net: diffusers' `UNet2DConditionModel`, as Stable Diffusion 1.x and 2.x use it."""

from convert.rules import LINEAR, Rule, Table, conv, conv1x1, linear, norm
from fmv2.models.encoder import EncoderConfig
from fmv2.models.unet import UNetConfig


def encoder_rules(config: EncoderConfig) -> tuple[Rule, ...]:
    """What U-Net and control net share; `{path}` covers the way up as well."""
    block = "{path}.transformer_blocks.{i}"
    projection = linear if config.use_linear_projection else conv1x1
    return (
        *conv("conv_in"),
        *linear("time_embedding.linear_{i}"),
        *norm("{path}.resnets.{i}.norm{j}"),
        *conv("{path}.resnets.{i}.conv{j}"),
        *linear("{path}.resnets.{i}.time_emb_proj"),
        *conv1x1("{path}.resnets.{i}.conv_shortcut"),
        *conv("{path}.downsamplers.0.conv"),
        *norm("{path}.attentions.{i}.norm"),
        *projection("{path}.attentions.{i}.proj_in"),
        *projection("{path}.attentions.{i}.proj_out"),
        *norm(block + ".norm{j}"),
        *(
            Rule(f"{block}.attn{{j}}.{name}.weight", f"{block}.attn{{j}}.{name}.kernel", LINEAR)
            for name in ("to_q", "to_k", "to_v")
        ),
        *linear(block + ".attn{j}.to_out.0", block + ".attn{j}.to_out"),
        *linear(block + ".ff.net.0.proj", block + ".ff.proj_in"),
        *linear(block + ".ff.net.2", block + ".ff.proj_out"),
    )


def table(config: UNetConfig) -> Table:
    """The table of a U-Net of this shape."""
    return Table(
        (
            *encoder_rules(config),
            *conv("{path}.upsamplers.0.conv"),
            *norm("conv_norm_out"),
            *conv("conv_out"),
        )
    )
