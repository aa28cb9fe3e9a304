"""What a TPU makes of the nets of a step: the TPU compiler's own figures, ahead of time, anywhere.

    pip install "jax[tpu]"
    python benchmarks/tpu_unet.py --topology v5e:2x2 --program forward

Prints JSON. FLOPs, bytes, temporaries and `estimated_cycles` are the compiler's own, for one chip.
It counts nothing inside a Pallas call, so flash attention is added by hand, as
`train.compiled.flash_calls` says: FLOPs and bytes by its operands, cycles by the compiler's
schedules of the kernels. `fraction_of_peak` is FLOPs over what the matrix units could do in those
cycles.
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Literal

# The host has no TPU: compile for one from the CPU backend.
os.environ.update(JAX_PLATFORMS="cpu")

import flax
import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from jax.sharding import SingleDeviceSharding

from fmv2.inputs import face_features, image_input
from fmv2.models.abstract import abstract
from fmv2.models.attention import AttentionChoice
from fmv2.models.clip_text import CLIPTextConfig, CLIPTextModel
from fmv2.models.clip_vision import CLIPVisionConfig, CLIPVisionModelWithProjection
from fmv2.models.id_adapter import IdAdapter, IdAdapterConfig
from fmv2.models.shadingnet import ShadingNet, ShadingNetConfig
from fmv2.models.unet import UNet, UNetConfig
from fmv2.models.vae import AutoencoderKL, AutoencoderKLConfig
from train.compiled import Kernel, cost, flash_calls, memory
from train.hardware import chip
from train.plan import find_devices


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compile the U-Net for a TPU and print the compiler's figures."""

    topology: str = "v5e:2x2"
    """Any that JAX knows: v4, v5e, v5p, v6e, each with its grid. One chip of it is compiled for."""
    program: Literal["forward", "all_weights", "trainables", "encoders"] = "forward"
    """The bare U-Net forward; value and gradient of all its weights; value and gradient of what
    Face-MakeUpV2 trains, IdAdapter and ShadingNet, through the frozen U-Net; or what a step reads
    off the frozen encoders of Stable Diffusion 1.5 beside ViT-H/14: picture, words and face."""
    preset: Literal["sd15", "sd21", "tiny"] = "sd15"
    """Of the U-Net; the encoders are always those of Stable Diffusion 1.5."""
    batch: int = 4
    latents: int = 64
    """Side of the latents: an eighth of the image's."""
    attention: AttentionChoice = "pallas"
    remat: bool = False
    """Compute each block's activations again on the way back."""
    hlo: Path | None = None
    """Where to keep the compiled text."""


def on_chip(sharding, net, config, **options):
    """The net as shapes, each on the chip; its arithmetic in bfloat16."""
    made = abstract(net, config, dtype=jnp.bfloat16, **options)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), made)


def program(settings: Settings, sharding):
    """The function to compile and its abstract arguments."""
    config = getattr(UNetConfig, settings.preset)()
    options = {"attention": settings.attention, "remat": settings.remat}
    weights = {"param_dtype": jnp.bfloat16}

    def given(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((settings.batch, *shape), dtype, sharding=sharding)

    side = settings.latents
    if settings.program == "encoders":
        return encoders, (
            on_chip(sharding, AutoencoderKL, AutoencoderKLConfig.sd15(), **weights),
            on_chip(sharding, CLIPTextModel, CLIPTextConfig.sd15(), **weights),
            on_chip(sharding, CLIPVisionModelWithProjection, CLIPVisionConfig.vit_h14(), **weights),
            given(8 * side, 8 * side, 3, dtype=jnp.uint8),
            given(77, dtype=jnp.int32),
            given(224, 224, 3, dtype=jnp.uint8),
        )
    unet = on_chip(sharding, UNet, config, **weights, **options)
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
        graph, state = nnx.split(unet)

        def all_weights(state, *inputs):
            return jax.value_and_grad(lambda w: error(nnx.merge(graph, w)(*inputs).noise))(state)

        return all_weights, (state, *inputs)

    adapter = on_chip(sharding, IdAdapter, IdAdapterConfig.for_unet(config))
    control = on_chip(sharding, ShadingNet, ShadingNetConfig.for_unet(config), **options)
    graph, state = nnx.split((adapter, control))
    identity = (given(512), given(257, 1280))
    shading = given(8 * side, 8 * side, 3)

    def trainables(state, unet, embedding, features, shading, *inputs):
        @jax.value_and_grad
        def value_and_grad(state):
            adapter, control = nnx.merge(graph, state)
            tokens = adapter.image_proj(embedding, features)
            residuals = control(*inputs[:2], tokens, shading)
            adapted = unet(*inputs, adapter=adapter, id_tokens=tokens, residuals=residuals)
            return error(adapted.noise)

        return value_and_grad(state)

    return trainables, (state, unet, *identity, shading, *inputs)


def encoders(vae, text_encoder, image_encoder, image, input_ids, face):
    """Moments of the latents, context, face features."""
    moments = vae.encode(image_input(image))
    return moments, text_encoder(input_ids).last_hidden_state, face_features(image_encoder, face)


def main(settings: Settings) -> dict:
    """The figures of one compile; null where the compiler has no estimate."""
    device = find_devices(settings.topology)[0]
    known = chip(device.device_kind)
    if known is None or known.clock is None:
        sys.exit(f"nothing is known here of a {device.device_kind}")
    flops_per_cycle = known.flops / known.clock
    function, arguments = program(settings, SingleDeviceSharding(device))
    start = time.monotonic()
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = time.monotonic() - start
    text = compiled.as_text()
    if settings.hlo:
        settings.hlo.write_text(text)
    size, total = memory(compiled), cost(compiled, known)
    kernels = list(flash_calls(text, known))
    flash = Kernel(*map(sum, zip(*kernels, strict=True))) if kernels else Kernel(0, 0, 0)
    cycles = total.cycles
    return {
        "settings": {k: str(v) for k, v in dataclasses.asdict(settings).items() if v is not None},
        "versions": {"jax": jax.__version__, "flax": flax.__version__, "libtpu": libtpu_version()},
        "compile_seconds": round(seconds),
        "compiler": {
            "tflop": (total.flops - flash.flops) / 1e12,
            "gigabytes_accessed": (total.bytes - flash.bytes) / 1e9,
            "estimated_megacycles": cycles and (cycles - flash.cycles) / 1e6,
            "temporaries_gigabytes": size.temporaries / 1e9,
            "arguments_gigabytes": size.arguments / 1e9,
        },
        "flash": {
            "calls": total.flash_calls,
            "tflop": flash.flops / 1e12,
            "gigabytes_accessed": flash.bytes / 1e9,
            "megacycles": flash.cycles / 1e6,
        },
        "total": {
            "tflop": total.flops / 1e12,
            "gigabytes_accessed": total.bytes / 1e9,
            "megacycles": cycles and cycles / 1e6,
            "fraction_of_peak": cycles and total.flops / flops_per_cycle / cycles,
        },
    }


def libtpu_version() -> str:
    """Of the compiler that made the figures."""
    from importlib.metadata import version

    return version("libtpu")


if __name__ == "__main__":
    print(json.dumps(main(tyro.cli(Settings)), indent=2))
