"""What the model draws while it learns, and where each phrase looks."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image, ImageDraw

from data.drawing import fit, glowing, left, page, top, words, write_words
from data.schema import Batch
from fmv2.denoise import Channels, denoiser, look, paint, phrase_maps
from fmv2.diffusion.samplers import ddim
from fmv2.diffusion.sampling import sample
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.inputs import shading_input
from fmv2.parallel import under
from fmv2.tokens import Tokens
from train.objectives.face_makeup import FaceMakeUp
from train.run import TRAIN, VALIDATION, Run
from train.step import TrainState
from train.validate import averaged

STEPS = 25
GUIDANCE_SCALE = 5.0
_COLUMNS = ("record", "shading", "aligned face", "sample", "attention")
_NEEDED = {"unet", "vae", "text_encoder"}


class Samples(NamedTuple):
    """Pictures of a batch's conditions."""

    images: UInt8[Array, "b h w 3"]
    maps: Float[Array, "b k g g"]
    """Attention of phrase k's tokens, the largest of each map 1."""


def make_sampler(run: Run) -> Callable[[TrainState], UInt8[np.ndarray, "h w 3"]] | None:
    """What draws a state's samples on one sheet: always the same records and the same noise.

    Returns:
      None for a run whose nets draw nothing.
    """
    objective, count = run.config.objective, run.config.report.samples
    if not {*objective.trained, *objective.frozen} >= _NEEDED:
        return None
    split = VALIDATION if run.dataset.splits.get(VALIDATION) else TRAIN
    everywhere = NamedSharding(run.mesh, PartitionSpec())
    with run.loader(split) as loader:
        first = jax.jit(
            lambda batch: jax.tree.map(lambda x: x[:count], batch), out_shardings=everywhere
        )(next(loader))
    empty = run.tokens.ids("")[None]

    def drawn(params, stats, frozen, batch):
        trained = nnx.merge(run.graph, params, stats)
        key = jax.random.key(0)
        return draw(objective, {**frozen, **trained}, batch, empty, run.schedule, key)

    compiled = jax.jit(under(run.mesh, drawn), out_shardings=everywhere)

    def sampler(state: TrainState) -> UInt8[np.ndarray, "h w 3"]:
        made = compiled(averaged(state), state.stats, run.frozen, first)
        return sheet(jax.device_get(made), jax.device_get(first), run.tokens)

    return sampler


def draw(
    objective: Any,
    nets: Mapping[str, Any],
    batch: Batch,
    empty_ids: Int[np.ndarray, "1 77"],
    schedule: NoiseSchedule,
    key: Array,
) -> Samples:
    """DDIM with guidance from the batch's own text, identity and shading.

    Args:
      objective: says whose identity embedding it is.
      nets: the base model and, where there are any, adapter and ShadingNet.
      batch: what to draw; nothing of its images is seen but the aligned faces.
      empty_ids: tokens of the empty caption.
      schedule: of the base model.
      key: for the first noise.
    """
    vae, count, size = nets["vae"], len(batch.image), batch.image.shape[1]
    ids = jnp.stack([jnp.broadcast_to(empty_ids, batch.input_ids.shape), batch.input_ids], axis=1)
    states = nets["text_encoder"](ids.reshape(-1, ids.shape[-1])).last_hidden_state
    channels = Channels(states.reshape(count, 2, *states.shape[1:]))
    if isinstance(objective, FaceMakeUp):
        tokens = _guided_tokens(objective, nets, batch)
        channels = channels._replace(id_tokens=tokens, shading=shading_input(batch.shading))

    steps = ddim(schedule, STEPS)
    side = size // vae.config.downscale
    noise = jax.random.normal(key, (count, side, side, nets["unet"].config.in_channels))
    denoise = denoiser(nets, channels, GUIDANCE_SCALE)
    latents = sample(denoise, steps.initial_latents(noise), steps)
    seen = look(nets, channels, latents, noise, schedule)
    return Samples(paint(vae, latents), phrase_maps(seen, batch.token_mask))


def sheet(samples: Any, batch: Any, tokens: Tokens) -> UInt8[np.ndarray, "h w 3"]:
    """One row per sample: its record, what was drawn, where its phrases look, and its caption.

    Args:
      samples: Samples in NumPy.
      batch: the Batch that they were drawn from, in NumPy.
      tokens: of the model.
    """
    made = page(_COLUMNS, len(samples.images))
    pen = ImageDraw.Draw(made)
    for row, image in enumerate(samples.images):
        maps = samples.maps[row] * batch.mask_valid[row][:, None, None]
        tiles = [fit(x)[0] for x in (batch.image[row], batch.shading[row], batch.face[row], image)]
        for column, tile in enumerate([*tiles, glowing(tiles[-1], maps)]):
            made.paste(Image.fromarray(tile), (left(column), top(row)))
        found = words(tokens.words(batch.input_ids[row]), tokens, batch.token_mask[row])
        write_words(pen, found, left(len(_COLUMNS)), top(row), top(row + 1))
    return np.asarray(made)


def _guided_tokens(
    objective: FaceMakeUp, nets: Mapping[str, Any], batch: Batch
) -> Float[Array, "b 2 n d"]:
    """ID tokens without identity, then with it."""
    nothing = jnp.zeros_like(batch.id_dropped)
    both = (objective.id_tokens(nets["adapter"], nets, batch, x) for x in (~nothing, nothing))
    return jnp.stack(list(both), axis=1)
