"""The training step on this machine's GPU beside the same objective in PyTorch, in one run.

    python -m benchmarks.gpu_train_step --batch 8
    python -m benchmarks.gpu_train_step --tiny          checks the program anywhere, times nothing

Prints JSON: seconds per step, images per second and MFU of `sd15` (512², bfloat16, without the
identity term) by JAX, by PyTorch eager with SDPA, and by torch.compile of every net. All of them
draw chance, encode image, text and face, take the gradients of adapter and ShadingNet, clip them,
and update float32 weights by AdamW and their running mean. Weights and pictures are random. MFU is
by the FLOPs that the objective needs (`train.flops`), the same for all three.
"""

import dataclasses
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

# PyTorch's processes ask JAX what the step is, and need the card to themselves.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import diffusers
import jax
import numpy as np
import torch
import transformers
import tyro
from torch.nn import functional as F

from convert.engine import torch_shapes
from convert.tables import id_adapter
from fmv2.models.abstract import abstract
from fmv2.models.id_adapter import IdAdapter
from fmv2.parallel import MeshConfig, make_mesh
from tests.train.batches import face_batch
from tests.train.objectives.published import Processor, id_tokens
from tests.train.small import IMAGE_SIZE, small_configs
from train.abstract import face_size, initial_state, jit_step
from train.config import TrainConfig
from train.flops import step_flops
from train.hardware import chip
from train.nets import Shapes, describe
from train.presets.sd15 import sd15
from train.step import split

Made = tuple[str, Callable[[], float]]
"""The kind of device, and what makes one step there."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Time the training step of `sd15` on this machine, ours and PyTorch's."""

    batch: int = 8
    """Four or more: of each kind of sample one."""
    steps: int = 20
    """Timed, after three that are not."""
    tiny: bool = False
    """A net of few layers at 64², to see that the program runs."""
    out: Path | None = None
    """Where to write the JSON as well."""


def main(settings: Settings) -> dict[str, Any]:
    """Seconds and shares of all three, each in a process of its own: what one of them holds of the
    card's memory, or its failure, is nothing to the others."""
    config, shapes = _asked(settings)
    found = {
        "settings": {k: str(v) for k, v in dataclasses.asdict(settings).items()},
        "versions": {m.__name__: m.__version__ for m in (jax, torch, diffusers)},
        "tflop_needed": step_flops(config, shapes).total / 1e12,
    }
    for name in _MAKERS:
        began = time.perf_counter()
        try:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                found[name] = process.submit(figures, name, settings).result()
        except Exception as error:  # noqa: BLE001  (the others' figures stand without it)
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        print(f"{name}: {found[name]}, {time.perf_counter() - began:.0f} s", file=sys.stderr)
        if settings.out:  # what is known, should the next be ended
            settings.out.write_text(json.dumps(found, indent=2) + "\n")
    return found


def figures(name: str, settings: Settings) -> dict[str, Any]:
    """Of one of the three, with the device it ran on."""
    config, shapes = _asked(settings)
    device, step = _MAKERS[name](config, shapes)
    first, seconds = _times(step, settings.steps)
    known, needed = chip(device), step_flops(config, shapes).total
    return {
        "device": device,
        "first_step_seconds": first,
        "seconds": seconds,
        "images_per_second": settings.batch / seconds,
        "mfu": None if known is None else needed / seconds / known.flops,
    }


def _asked(settings: Settings) -> tuple[TrainConfig, Shapes]:
    shapes = Shapes(small_configs(), Shapes.sd15().schedule) if settings.tiny else Shapes.sd15()
    preset = sd15()
    config = dataclasses.replace(
        preset,
        objective=dataclasses.replace(preset.objective, id_weight=0.0),
        batch_size=settings.batch,
        size=IMAGE_SIZE if settings.tiny else preset.size,
        mesh=MeshConfig(),
    )
    return config, shapes.completed(config.objective)


def _times(step: Callable[[], float], steps: int) -> tuple[float, float]:
    """Seconds of the first step, which compiles, and the median of the others; their losses must be
    numbers."""
    times = []
    for _ in range(steps + 3):
        start = time.perf_counter()
        loss = step()
        times.append(time.perf_counter() - start)
        if not np.isfinite(loss):
            raise RuntimeError("the loss is not finite: the times mean nothing")
    return times[0], statistics.median(times[3:])


def ours(config: TrainConfig, shapes: Shapes) -> Made:
    """A step of the trainer; it returns when the loss is on the host."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    # Filled on the host: a program that draws 2334 arrays takes minutes to compile.
    some = 0.02 * np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    trained, frozen = jax.tree.map(
        lambda x: jax.device_put(np.resize(some, x.shape).astype(x.dtype), jax.devices()[0]),
        describe(config, shapes),
    )
    state = jax.device_put(initial_state(config, trained), jax.devices()[0])
    step = jit_step(config, split(trained)[0], shapes.schedule, state, mesh)
    given = jax.device_put(_batch(config, shapes))
    held = [state]
    del trained, state

    def run() -> float:
        held[0], metrics = step(held[0], frozen, given)
        return float(metrics["loss"])

    return jax.devices()[0].device_kind, run


def _batch(config: TrainConfig, shapes: Shapes) -> Any:
    return face_batch(config.batch_size, size=config.size, face=face_size(shapes))[0]


class Fused(Processor):
    """PyTorch's fused attention, but where the maps are looked at."""

    def __init__(self, weights: dict[str, torch.Tensor], looked_at: int):
        super().__init__(weights)
        self.looked_at = looked_at

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, id_tokens=None, **_):
        crosses = encoder_hidden_states is not None
        context = encoder_hidden_states if crosses else hidden_states

        def heads(x):
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        query = heads(self.adapted(attn.to_q, "q", hidden_states))
        key = heads(self.adapted(attn.to_k, "k", context))
        value = heads(self.adapted(attn.to_v, "v", context))
        if crosses and query.shape[2] == self.looked_at:
            scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
            self.text_attention = scores.float().softmax(-1)
            y = self.text_attention.to(value.dtype) @ value
        else:
            y = F.scaled_dot_product_attention(query, key, value)
        if crosses:
            key, value = (
                heads(F.linear(id_tokens, self.weights[f"to_{name}_ip.weight"])) for name in "kv"
            )
            y = y + F.scaled_dot_product_attention(query, key, value)
        return self.adapted(attn.to_out[0], "out", y.transpose(1, 2).flatten(2))


def theirs(config: TrainConfig, shapes: Shapes, *, compiled: bool) -> Made:
    """The same step in PyTorch, from diffusers' nets."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    configs = shapes.configs

    def frozen(net: torch.nn.Module) -> Any:
        return net.to(device, torch.bfloat16).requires_grad_(False).eval()

    unet = frozen(diffusers.UNet2DConditionModel.from_config(configs["unet"].to_config()))
    vae = frozen(diffusers.AutoencoderKL.from_config(configs["vae"].to_config()))
    text = configs["text_encoder"].to_config()
    text_encoder = frozen(transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)))
    vision = transformers.CLIPVisionConfig(**configs["image_encoder"].to_config())
    image_encoder = frozen(transformers.CLIPVisionModelWithProjection(vision))
    control = diffusers.ControlNetModel.from_config(configs["shadingnet"].to_config()).to(device)
    named = torch_shapes(abstract(IdAdapter, configs["adapter"]), id_adapter.TABLE)
    adapter = {
        name: (0.02 * torch.randn(shape, device=device)).requires_grad_()
        for name, shape in named.items()
    }
    grid = config.size // 16
    processors = {
        f"{layer.path}.processor": Fused(_under(adapter, f"ip_adapter.{n}"), grid * grid)
        for n, layer in enumerate(configs["adapter"].layers)
    }
    unet.set_attn_processor(dict(processors))
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    abar = scheduler.alphas_cumprod.to(device)
    weights = [*adapter.values(), *control.parameters()]
    mean = [w.detach().clone() for w in weights]
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        weights, settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    given = _batch(config, shapes)
    batch = {
        name: torch.from_numpy(value).to(device)
        for name, value in vars(given).items()
        if isinstance(value, np.ndarray)
    }
    masks = torch.from_numpy(given.masks[grid]).to(device)

    def loss() -> torch.Tensor:
        image, face, shading = (
            batch[name].permute(0, 3, 1, 2).float() / 255 for name in ("image", "face", "shading")
        )
        with torch.no_grad():
            latents = vae.encode((2 * image - 1).bfloat16()).latent_dist.sample().float()
            pixels = face * ~batch["face_dropped"][:, None, None, None]
            hidden = image_encoder(pixels.bfloat16(), output_hidden_states=True).hidden_states[-2]
            context = text_encoder(batch["input_ids"]).last_hidden_state
        latents = latents * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        times = torch.randint(0, len(abar), (len(latents),), device=device)
        at = abar[times][:, None, None, None]
        noisy = at.sqrt() * latents + (1 - at).sqrt() * noise
        with torch.autocast(device, torch.bfloat16):
            tokens = id_tokens(_under(adapter, "image_proj"), batch["face_id"], hidden)
            down, mid = control(noisy, times, tokens, shading, return_dict=False)
            predicted = unet(
                noisy.bfloat16(),
                times,
                context,
                cross_attention_kwargs={"id_tokens": tokens.bfloat16()},
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            ).sample
        maps = [p.text_attention for p in processors.values() if p.text_attention is not None]
        term = sum(_mass(seen, batch["token_mask"], masks, batch["mask_valid"]) for seen in maps)
        return F.mse_loss(predicted.float(), noise) + config.objective.map_weight * term

    if compiled:
        for net in (unet, vae.encoder, text_encoder, image_encoder, control):
            net.compile(dynamic=False)

    def run() -> float:
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights, settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(mean, [w.detach() for w in weights], 1e-4)
        return value.item()

    return torch.cuda.get_device_name() if device == "cuda" else device, run


_MAKERS: dict[str, Callable[[TrainConfig, Shapes], Made]] = {
    "jax": ours,
    "torch eager": partial(theirs, compiled=False),
    "torch.compile": partial(theirs, compiled=True),
}


def _mass(attention, token_mask, masks, valid):
    """`train.losses.map_loss` of one layer in the form "mass"."""
    cover = masks.flatten(2)
    region = (cover >= cover.amax(-1, keepdim=True) / 2).float()
    of_phrase = torch.einsum("bhqt,bkt->bkq", attention, token_mask.float())
    inside = torch.einsum("bkq,bkq->bk", of_phrase, region)
    outside = 1 - inside / of_phrase.sum(-1).clamp(min=1e-12)
    return torch.where(valid, outside, 0).sum() / valid.sum().clamp(min=1)


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")
    }


if __name__ == "__main__":
    print(json.dumps(main(tyro.cli(Settings)), indent=2))
