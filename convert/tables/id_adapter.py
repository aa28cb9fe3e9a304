"""The adapter: the names of IP-Adapter-FaceID-PlusV2's files and of the published `model.bin`."""

from convert.rules import LINEAR, Rule, Table, linear, norm

_RESAMPLER = "image_proj.perceiver_resampler"
_LAYER = _RESAMPLER + ".layers.{i}"


def _unbiased(torch: str, flax: str) -> Rule:
    return Rule(f"{torch}.weight", f"{flax}.kernel", LINEAR)


TABLE = Table(
    (
        *linear("image_proj.proj.0", "image_proj.proj_in"),
        *linear("image_proj.proj.2", "image_proj.proj_out"),
        *norm("image_proj.norm"),
        *linear(f"{_RESAMPLER}.proj_in"),
        *linear(f"{_RESAMPLER}.proj_out"),
        *norm(f"{_RESAMPLER}.norm_out"),
        *norm(_LAYER + ".0.norm{j}", _LAYER + ".attention.norm{j}"),
        *(
            _unbiased(f"{_LAYER}.0.{name}", f"{_LAYER}.attention.{name}")
            for name in ("to_q", "to_kv", "to_out")
        ),
        *norm(_LAYER + ".1.0", _LAYER + ".feed_forward.norm"),
        _unbiased(_LAYER + ".1.1", _LAYER + ".feed_forward.proj_in"),
        _unbiased(_LAYER + ".1.3", _LAYER + ".feed_forward.proj_out"),
        *(
            _unbiased(
                f"ip_adapter.{{i}}.to_{name}_lora.{end}", f"layers.{{i}}.to_{name}_lora.{end}"
            )
            for name in ("q", "k", "v", "out")
            for end in ("down", "up")
        ),
        *(
            _unbiased(f"ip_adapter.{{i}}.to_{name}_ip", f"layers.{{i}}.to_{name}_ip")
            for name in "kv"
        ),
    )
)
