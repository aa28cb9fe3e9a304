"""The weights of DECA's coarse encoder, the names of `E_flame` in `deca_model.tar`."""

from convert.rules import CONV, Ignore, Rule, Table, batch_norm, linear

_BLOCK = "encoder.layer{i}.{j}"

TABLE = Table(
    rules=(
        Rule("encoder.conv1.weight", "encoder.conv1.kernel", CONV),
        *batch_norm("encoder.bn1"),
        Rule(f"{_BLOCK}.conv{{k}}.weight", f"{_BLOCK}.conv{{k}}.kernel", CONV),
        *batch_norm(f"{_BLOCK}.bn{{k}}"),
        Rule(f"{_BLOCK}.downsample.0.weight", f"{_BLOCK}.downsample.0.kernel", CONV),
        *batch_norm(f"{_BLOCK}.downsample.1"),
        *linear("layers.0", "hidden"),
        *linear("layers.2", "out"),
    ),
    ignores=(
        Ignore(
            "{path}.num_batches_tracked",
            "counts training steps; with a set momentum torch itself never reads it",
        ),
    ),
)
