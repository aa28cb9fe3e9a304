"""The weights of ArcFace's IResNet, the names of insightface's arcface_torch."""

from convert.rules import CONV, Ignore, Rule, Table, batch_norm, linear_after_flatten
from fmv2.models.arcface import ArcFaceConfig


def table(config: ArcFaceConfig) -> Table:
    """The table of an IResNet of this shape; the size of its last map decides the order in `fc`."""
    flattened = linear_after_flatten(config.widths[-1], config.map_size, config.map_size)
    block = "layer{i}.{j}"
    return Table(
        rules=(
            Rule("conv1.weight", "conv1.kernel", CONV),
            *batch_norm("bn1"),
            Rule("prelu.weight", "prelu.weight"),
            *batch_norm(f"{block}.bn{{k}}"),
            Rule(f"{block}.conv{{k}}.weight", f"{block}.conv{{k}}.kernel", CONV),
            Rule(f"{block}.prelu.weight", f"{block}.prelu.weight"),
            Rule(f"{block}.downsample.0.weight", f"{block}.downsample.0.kernel", CONV),
            *batch_norm(f"{block}.downsample.1"),
            *batch_norm("bn2"),
            Rule("fc.weight", "fc.kernel", flattened),
            Rule("fc.bias", "fc.bias"),
            *batch_norm("features"),
        ),
        ignores=(
            Ignore(
                "{path}.num_batches_tracked",
                "counts training steps; with a set momentum torch itself never reads it",
            ),
        ),
    )
