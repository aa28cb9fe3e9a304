"""ShadingNet: diffusers' `ControlNetModel`."""

from convert.rules import Table, conv, conv1x1
from convert.tables.unet import encoder_rules
from fmv2.models.shadingnet import ShadingNetConfig


def table(config: ShadingNetConfig) -> Table:
    """The table of a ShadingNet of this shape."""
    embedding = "controlnet_cond_embedding"
    return Table(
        (
            *encoder_rules(config),
            *conv(f"{embedding}.conv_in"),
            *conv(f"{embedding}.blocks.{{i}}"),
            *conv(f"{embedding}.conv_out"),
            *conv1x1("controlnet_down_blocks.{i}"),
            *conv1x1("controlnet_mid_block"),
        )
    )
