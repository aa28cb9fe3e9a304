"""What the model draws of held-out people, with all of its channels and without some of them."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from rich.console import Console
from rich.progress import Progress

from convert import runs
from convert.folder import assemble, read
from data.procedural.factors import Factors
from data.procedural.prompts import Prompt
from data.procedural.world import coefficients_of
from fmv2.assets import TINY
from fmv2.conditions import Conditions
from fmv2.denoise import Channels, look, phrase_maps
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.drawing import initial_noise
from fmv2.inputs import face_features, image_input, shading_input
from fmv2.pipeline import FaceMakeUp
from fmv2.settings import Knobs, Settings
from fmv2.tokens import EMBEDDED, Tokens
from train.quickstart.scenes import Scenes

SETTINGS = Settings(
    steps=8,
    sampler="dpm++",
    guidance_scale=2.0,
    id_scale=1.0,
    s_scale=1.0,
    shading_scale=1.0,
    shading_guidance=True,
)
"""Scales are those of training."""

OURS, NO_IDENTITY, NO_SHADING, BASE = "ours", "id_scale=0", "shading_scale=0", "base model"
VARIANTS: Mapping[str, Knobs] = {
    OURS: {},
    NO_IDENTITY: {"id_scale": 0.0},
    NO_SHADING: {"shading_scale": 0.0},
    BASE: {"id_scale": 0.0, "shading_scale": 0.0},
}
"""Each from the same noise, prompts and faces."""

AT_ONCE = 6
"""Pictures drawn together. Numbers of pictures that it divides share the programs."""


def conditions_of(model: FaceMakeUp, scenes: Scenes) -> list[Conditions]:
    """Each person's own picture, in the expression, pose and light of their scene."""
    made = []
    for number, reference in enumerate(scenes.references):
        wanted = coefficients_of(one_of(scenes.targets, number))
        expression, pose, light = (
            wanted[f"coefficients/{name}"] for name in ("expression", "pose", "light")
        )
        made.append(model.prepare(reference, expression=expression, pose=pose, light=light))
    return made


def one_of(many: Factors, number: int) -> Factors:
    """One picture's causes out of a batch."""
    return jax.tree.map(lambda x: x[number], many)


def draw(
    model: FaceMakeUp,
    prompts: Sequence[str],
    conditions: Sequence[Conditions],
    console: Console,
    title: str,
    **knobs: Any,
) -> UInt8[np.ndarray, "n s s 3"]:
    """A picture of each prompt, with SETTINGS but for the knobs given."""
    with _progress(console, title) as told:
        return model.generate(
            prompts,
            conditions,
            progress=told,
            at_once=AT_ONCE,
            **{**dataclasses.asdict(SETTINGS), **knobs},
        ).images


@contextlib.contextmanager
def _progress(console: Console, title: str) -> Iterator[Any]:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def export_arrays(
    model: FaceMakeUp, conditions: Sequence[Conditions]
) -> dict[str, Float[np.ndarray, "n ..."]]:
    """The same conditions and noise for the export's own pipeline, see `torch_side.render`."""
    count, vae, unet = len(conditions), model.nets["vae"].config, model.nets["unet"].config
    side = len(conditions[0].shading) // vae.downscale
    nobody = jnp.zeros((1, 1, 1, 3), jnp.uint8)
    blank = face_features(model.nets["image_encoder"], nobody, jnp.ones(1, bool))
    noise = initial_noise(SETTINGS.seed, count, (side, side, unet.in_channels))
    arrays = {
        "id_embeds": np.stack([found.identity for found in conditions]),
        "faces": np.stack([found.features for found in conditions]),
        "negative_faces": np.asarray(blank),
        "shading": np.stack([found.shading for found in conditions]) / np.float32(255),
        "latents": np.asarray(noise),
    }
    return {name: np.asarray(x, np.float32) for name, x in arrays.items()}


def export_settings() -> dict[str, Any]:
    """SETTINGS as the export's own pipeline calls them, but for the sampler."""
    return {
        "num_inference_steps": SETTINGS.steps,
        "guidance_scale": SETTINGS.guidance_scale,
        "scale": SETTINGS.id_scale,
        "s_scale": SETTINGS.s_scale,
        "shading_scale": SETTINGS.shading_scale,
        "shading_guidance": SETTINGS.shading_guidance,
    }


def attention_in(
    model: FaceMakeUp,
    images: UInt8[np.ndarray, "n s s 3"],
    prompts: Sequence[Prompt],
    conditions: Sequence[Conditions],
) -> list[Float[np.ndarray, "k g g"]]:
    """Where each phrase of each prompt looks in a picture, the largest of each map 1.

    Args:
      images: which it is noised from: true ones, or drawn.
    """
    tokens = Tokens.load(EMBEDDED)
    given = (
        images,
        np.stack([tokens.ids(prompt.worded.text) for prompt in prompts]),
        np.stack([found.identity for found in conditions]),
        np.stack([found.features for found in conditions]),
        np.stack([found.shading for found in conditions]),
    )
    needed = ("unet", "adapter", "shadingnet", "vae", "text_encoder")
    looked = model.nets.jit(_seen, *needed, schedule=model.schedule)
    portions = model.nets.portions(len(images), AT_ONCE)
    seen = np.concatenate(
        [looked(*model.nets.share([x[some] for x in given])) for some in portions]
    )[: len(images)]
    return [
        np.asarray(phrase_maps(own[None], jnp.asarray(_spans(tokens, prompt))[None])[0])
        for own, prompt in zip(seen, prompts, strict=True)
    ]


def _spans(tokens: Tokens, prompt: Prompt) -> np.ndarray:
    text, phrases = prompt.worded
    return tokens.phrases(text, [(phrase.start, phrase.end) for phrase in phrases])


def _seen(
    nets: Mapping[str, Any],
    images: Array,
    ids: Array,
    identity: Array,
    features: Array,
    shading: Array,
    schedule: NoiseSchedule,
) -> Float[Array, "n q t"]:
    vae = nets["vae"]
    latents = vae.config.scale(vae.encode(image_input(images)).mean)
    channels = Channels(
        nets["text_encoder"](ids).last_hidden_state[:, None],
        nets["adapter"].image_proj(identity, features)[:, None],
        shading_input(shading),
    )
    return look(
        nets, channels, latents, jax.random.normal(jax.random.key(0), latents.shape), schedule
    )


def model_at(out: Path, name: str, step: int) -> FaceMakeUp:
    """The base with what a run of the quickstart had learnt at a step."""
    assembly = assemble([TINY, runs.source(out / name, step=step)])
    return FaceMakeUp(read(assembly, dtype=jnp.float32))
