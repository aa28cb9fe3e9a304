"""What a TPU makes of the U-Net: the real TPU compiler's figures, ahead of time, on any machine.

    pip install "jax[tpu]"
    python benchmarks/tpu_unet.py --topology v5e:2x2 --program forward

Prints JSON. FLOPs, bytes, temporaries and `estimated_cycles` are the compiler's own, for one chip.
It counts nothing inside a Pallas call, so splash attention is added by hand, `kernel_cost` below:
FLOPs and bytes exactly, cycles by a model that overlaps nothing. `fraction_of_peak` is FLOPs over
what the chip's matrix units could do in the estimated cycles.
"""

import dataclasses
import json
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Literal

# The host has no TPU: compile for one from the CPU backend, and ask no metadata server for chips.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1")

import flax
import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from fmv2.models.abstract import abstract
from fmv2.models.attention import AttentionChoice
from fmv2.models.id_adapter import IdAdapter, IdAdapterConfig
from fmv2.models.shadingnet import ShadingNet, ShadingNetConfig
from fmv2.models.unet import UNet, UNetConfig

# bf16 FLOP/s and Hz of one chip: FLOPs per cycle is what counts here. Vendor's specifications.
CHIPS = {
    "v4": (275e12, 1.05e9),
    "v5e": (197e12, 1.5e9),
    "v5p": (459e12, 1.75e9),
    "v6e": (918e12, 1.75e9),
}
# The vector unit: 8 × 128 lanes of 4 ALUs.
VECTOR_OPERATIONS_PER_CYCLE = 4096


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compile the U-Net for a TPU and print the compiler's figures."""

    topology: str = "v5e:2x2"
    """Any that JAX knows: v4, v5e, v5p, v6e, each with its grid. One chip of it is compiled for."""
    program: Literal["forward", "all_weights", "trainables"] = "forward"
    """The bare U-Net forward; value and gradient of all its weights; or value and gradient of what
    Face-MakeUpV2 trains, IdAdapter and ShadingNet, through the frozen U-Net."""
    preset: Literal["sd15", "sd21", "tiny"] = "sd15"
    batch: int = 4
    latents: int = 64
    """Side of the latents: an eighth of the image's."""
    attention: AttentionChoice = "splash"
    hlo: Path | None = None
    """Where to keep the compiled text."""


def on_chip(sharding, net, config, **options):
    """The net as shapes, each on the chip; its arithmetic in bfloat16."""
    made = abstract(net, config, dtype=jnp.bfloat16, **options)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), made)


def program(settings: Settings, sharding):
    """The function to compile and its abstract arguments."""
    config = getattr(UNetConfig, settings.preset)()
    attention = settings.attention

    def given(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((settings.batch, *shape), dtype, sharding=sharding)

    side = settings.latents
    unet = on_chip(sharding, UNet, config, param_dtype=jnp.bfloat16, attention=attention)
    inputs = (
        given(side, side, config.in_channels),
        given(dtype=jnp.int32),
        given(77, config.cross_attention_dim),
    )
    if settings.program == "forward":
        return lambda unet, *inputs: unet(*inputs).noise, (unet, *inputs)

    def error(predicted):
        return jnp.mean(jnp.square(predicted.astype(jnp.float32)))

    if settings.program == "all_weights":
        graph, weights = nnx.split(unet)

        def all_weights(weights, *inputs):
            return jax.value_and_grad(lambda w: error(nnx.merge(graph, w)(*inputs).noise))(weights)

        return all_weights, (weights, *inputs)

    adapter = on_chip(sharding, IdAdapter, IdAdapterConfig.for_unet(config))
    control = on_chip(sharding, ShadingNet, ShadingNetConfig.for_unet(config), attention=attention)
    graph, weights = nnx.split((adapter, control))
    identity = (given(512), given(257, 1280))
    shading = given(8 * side, 8 * side, 3)

    def trainables(weights, unet, embedding, features, shading, *inputs):
        @jax.value_and_grad
        def value_and_grad(weights):
            adapter, control = nnx.merge(graph, weights)
            tokens = adapter.image_proj(embedding, features)
            residuals = control(*inputs[:2], tokens, shading)
            adapted = unet(*inputs, adapter=adapter, id_tokens=tokens, residuals=residuals)
            return error(adapted.noise)

        return value_and_grad(weights)

    return trainables, (weights, unet, *identity, shading, *inputs)


def kernel_cost(compiled_text: str, flops_per_cycle: float) -> dict[str, float]:
    """What the splash attention calls of a compiled program cost, by their operands' shapes.

    Forward is two products (q kᵀ, p v), backward five (q kᵀ again, dp, dv, dk, dq). On the matrix
    unit a head pads to a multiple of 128; on the vector unit the softmax of a logit takes about six
    operations forward and ten backward. Nothing is taken to overlap.
    """
    cost = {"calls": 0, "flops": 0.0, "bytes": 0.0, "cycles": 0.0}
    for line in compiled_text.splitlines():
        call = re.search(r"%(splash_mha_\w+)[.\d]* = .* custom-call\(", line)
        if not call:
            continue
        name, operands = call[1], line[line.index("operand_layout_constraints=") :]
        # The first operand of four dimensions is the queries.
        query = re.search(r"bf16\[(\d+),(\d+),(\d+),(\d+)\]", operands)
        batch, heads, tokens, head_dim = map(int, query.groups())
        backward = "dkv" in name
        products, vector_operations = (5, 10) if backward else (2, 6)
        logits = batch * heads * tokens**2
        padded = 128 * math.ceil(head_dim / 128)
        matrix = 2 * products * logits * padded / flops_per_cycle
        vector = vector_operations * logits / VECTOR_OPERATIONS_PER_CYCLE
        one = 2 * batch * heads * tokens * head_dim  # bytes of q, k, v or any gradient
        # Forward: q and o once, k and v for each block of queries. Backward: k, v, dk and dv once;
        # q, o, do and a part of dq for each block of keys.
        blocks = math.ceil(tokens / (2048 if backward and head_dim <= 128 else 1024))
        cost["bytes"] += one * ((4 + 4 * blocks) if backward else (2 + 2 * blocks))
        cost["flops"] += 2 * products * logits * head_dim
        cost["cycles"] += matrix + vector
        cost["calls"] += 1
    return cost


def main(settings: Settings) -> dict:
    """The figures of one compile."""
    chip = settings.topology.split(":")[0]
    if chip not in CHIPS:
        sys.exit(f"topology must begin with one of {sorted(CHIPS)}, got {settings.topology!r}")
    flops_per_cycle = CHIPS[chip][0] / CHIPS[chip][1]
    topology = topologies.get_topology_desc(platform="tpu", topology_name=settings.topology)
    function, arguments = program(settings, SingleDeviceSharding(topology.devices[0]))
    start = time.monotonic()
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = time.monotonic() - start
    text = compiled.as_text()
    if settings.hlo:
        settings.hlo.write_text(text)
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    kernels = kernel_cost(text, flops_per_cycle)
    cycles = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))
    flops = analysis["flops"] + kernels["flops"]
    return {
        "settings": {k: str(v) for k, v in dataclasses.asdict(settings).items() if v is not None},
        "versions": {"jax": jax.__version__, "flax": flax.__version__, "libtpu": libtpu_version()},
        "compile_seconds": round(seconds),
        "compiler": {
            "tflop": analysis["flops"] / 1e12,
            "gigabytes_accessed": analysis["bytes accessed"] / 1e9,
            "estimated_megacycles": cycles / 1e6,
            "temporaries_gigabytes": memory.temp_size_in_bytes / 1e9,
            "arguments_gigabytes": memory.argument_size_in_bytes / 1e9,
        },
        "splash": {
            "calls": kernels["calls"],
            "tflop": kernels["flops"] / 1e12,
            "gigabytes_accessed": kernels["bytes"] / 1e9,
            "modelled_megacycles": kernels["cycles"] / 1e6,
        },
        "total": {
            "tflop": flops / 1e12,
            "gigabytes_accessed": (analysis["bytes accessed"] + kernels["bytes"]) / 1e9,
            "megacycles": (cycles + kernels["cycles"]) / 1e6,
            "fraction_of_peak": flops / flops_per_cycle / (cycles + kernels["cycles"]),
        },
    }


def libtpu_version() -> str:
    """Of the compiler that made the figures."""
    from importlib.metadata import version

    return version("libtpu")


if __name__ == "__main__":
    print(json.dumps(main(tyro.cli(Settings)), indent=2))
