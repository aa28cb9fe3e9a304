"""Pictures from what they are told: steps of a sampler, on all devices, portion by portion.

The steps are taken one by one from here and not in one program, so that progress can be told, a
run can be stopped, and as many steps as one likes take the same program.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from fmv2.conditions import Conditions
from fmv2.denoise import Channels, denoiser, look, paint
from fmv2.diffusion.sampling import Sampler, State, StepTable, first_state, step, step_noise
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.inputs import face_features, image_input, shading_input
from fmv2.nets import Nets
from fmv2.settings import Settings

Places = Int[np.ndarray, "b"]
"""Numbers of pictures."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
    """What n pictures are told."""

    ids: Int[np.ndarray, "n 2 77"]
    """Tokens to lead away from, and to."""
    phrases: Bool[np.ndarray, "n k 77"]
    """Tokens whose attention is asked for."""
    names: tuple[str, ...]
    """What those phrases are called."""
    size: int
    """Side of the pictures in pixels."""
    faces: Sequence[Conditions]
    """Of all of them or of none."""

    def each(self, times: int) -> "Told":
        """The same for so many pictures of each, side by side."""
        return dataclasses.replace(
            self,
            ids=self.ids.repeat(times, axis=0),
            phrases=self.phrases.repeat(times, axis=0),
            faces=[face for face in self.faces for _ in range(times)],
        )


class Edit(NamedTuple):
    """A picture of which a region alone is drawn."""

    image: UInt8[np.ndarray, "s s 3"]
    region: Float[np.ndarray, "s s"]


class Kept(NamedTuple):
    """What an edit leaves as it is: the picture's latents, the noise over them, and where not."""

    latents: Float[Array, "b h w c"]
    noise: Float[Array, "b h w c"]
    free: Bool[Array, "b h w 1"]


class Drawing:
    """A model's hand.

    Args:
      nets: of the model.
      schedule: its own.
    """

    def __init__(self, nets: Nets, schedule: NoiseSchedule):
        self._nets = nets
        self._schedule = schedule
        self._context = nets.jit(_context, "text_encoder")
        self._tokens = nets.jit(_tokens, "adapter", "image_encoder")
        self._encode = nets.jit(_encode, "vae")
        self._step = nets.jit(_step, "unet", "adapter", "shadingnet")
        self._paint = nets.jit(_paint, "vae")
        self._look = nets.jit(look, "unet", "adapter", "shadingnet", schedule=schedule)

    def __call__(
        self,
        told: Told,
        settings: Settings,
        noise: Float[np.ndarray, "n h w c"],
        at_once: int,
        progress: Callable[[int, int], None],
        edit: Edit | None = None,
    ) -> tuple[UInt8[np.ndarray, "n s s 3"], Float[np.ndarray, "n q 77"] | None]:
        """The pictures, and how much each place looks at each token where phrases are asked for.

        Args:
          noise: to begin with, standard normal.
          at_once: most pictures on one device at a time.
          progress: told the steps done, and how many there are.
        """
        count, sampler = len(told.ids), settings.table(self._schedule)
        portions = self._nets.portions(count, at_once)
        images, seen = [], []
        for number, places in enumerate(portions):
            channels = self._channels(told, settings, places)
            begun = self._nets.share(noise[places])
            kept = None if edit is None else self._kept(edit, begun)
            keys = picture_keys(settings.seed, places)[1]
            drawn = jnp.zeros_like(begun)
            state = first_state(sampler.initial_latents(begun))
            for i, (row, levels) in enumerate(_rows(sampler)):
                if kept is not None and i == 0:
                    state = _keep(kept, state, row.alpha, row.sigma)
                if sampler.stochastic:
                    drawn = self._nets.share(_step_noise(keys, i, begun.shape))
                state = self._step(channels, settings.guidance_scale, state, row, drawn)
                if kept is not None:
                    state = _keep(kept, state, *levels)
                jax.block_until_ready(state)
                progress(number * settings.steps + i + 1, len(portions) * settings.steps)
            images.append(np.asarray(self._paint(state.latents)))
            if told.names:
                seen.append(np.asarray(self._look(channels, state.latents, begun)))
        looked = np.concatenate(seen)[:count] if seen else None
        return np.concatenate(images)[:count], looked

    def _channels(self, told: Told, settings: Settings, places: Places) -> Channels:
        share = self._nets.share
        guided = settings.guidance_scale != 1
        context = self._context(share(told.ids[places, 0 if guided else 1 :]))
        channels = Channels(context, id_scale=settings.id_scale or None)
        if not told.faces or not (settings.id_scale or settings.shading_scale):
            return channels
        faces = [told.faces[i] for i in places]
        known = np.array([False, True] if guided else [True]) & (settings.id_scale > 0)
        tokens = self._tokens(
            share(np.stack([face.identity for face in faces])),
            share(np.stack([face.features for face in faces])),
            known,
            settings.s_scale,
        )
        channels = channels._replace(id_tokens=tokens)
        if not settings.shading_scale:
            return channels
        shading = shading_input(share(np.stack([face.shading for face in faces])))
        seen = np.array([not settings.shading_guidance, True] if guided else [True])
        scales = settings.shading_scale * seen.astype(np.float32)
        return channels._replace(shading=shading, shading_scale=scales)

    def _kept(self, edit: Edit, noise: Float[Array, "b h w c"]) -> Kept:
        latents = self._encode(edit.image[None])
        side = latents.shape[1]
        cells = edit.region.reshape(side, len(edit.region) // side, side, -1)
        free = np.any(cells > 0, axis=(1, 3))[None, :, :, None]
        shape = (len(noise), *latents.shape[1:])
        return Kept(
            self._nets.share(np.broadcast_to(np.asarray(latents), shape)),
            noise,
            self._nets.share(np.broadcast_to(free, (*shape[:3], 1))),
        )


def initial_noise(seed: int, count: int, shape: tuple[int, int, int]) -> Float[Array, "n h w c"]:
    """What pictures 0 to count - 1 of a seed begin with: each from a key of its own."""
    first, _ = picture_keys(seed, np.arange(count))
    return jax.vmap(lambda key: jax.random.normal(key, shape))(first)


def picture_keys(seed: int, places: Places) -> tuple[Array, Array]:
    """Keys of pictures by their number: of the noise that each begins with, and of its steps."""
    own = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.asarray(places))
    first, steps = jnp.moveaxis(jax.vmap(jax.random.split)(own), 1, 0)
    return first, steps


def _rows(sampler: Sampler) -> Iterator[tuple[StepTable, tuple[Any, Any]]]:
    """Each step, and the noise level (alpha, sigma) that it ends at."""
    table = sampler.table
    after = zip([*table.alpha[1:], 1.0], [*table.sigma[1:], 0.0], strict=True)
    for i, levels in enumerate(after):
        yield StepTable(*(column[i] for column in table)), levels


def _context(nets: Mapping[str, Any], ids: Int[Array, "b g t"]) -> Float[Array, "b g t d"]:
    states = nets["text_encoder"](ids.reshape(-1, ids.shape[-1])).last_hidden_state
    return states.reshape(*ids.shape, -1)


def _tokens(
    nets: Mapping[str, Any],
    identity: Float[Array, "b d"],
    features: Float[Array, "b t f"],
    known: Bool[Array, " g"],
    s_scale: Float[Array, ""],
) -> Float[Array, "b g n e"]:
    """ID tokens in each way; where not known, those of nobody, as in training."""
    nobody = jnp.zeros((1, 1, 1, 3), jnp.uint8)
    blank = face_features(nets["image_encoder"], nobody, jnp.ones(1, bool))
    told = known[None, :, None]
    identities = jnp.where(told, identity[:, None], 0)
    structures = jnp.where(told[..., None], features[:, None], blank[:, None])
    tokens = nets["adapter"].image_proj(
        identities.reshape(-1, identities.shape[-1]),
        structures.reshape(-1, *structures.shape[2:]),
        s_scale,
    )
    return tokens.reshape(*identities.shape[:2], *tokens.shape[1:])


def _encode(nets: Mapping[str, Any], image: UInt8[Array, "1 s s 3"]) -> Float[Array, "1 h w c"]:
    vae = nets["vae"]
    return vae.config.scale(vae.encode(image_input(image)).mean.astype(jnp.float32))


def _paint(nets: Mapping[str, Any], latents: Float[Array, "b h w c"]) -> UInt8[Array, "b s s 3"]:
    return paint(nets["vae"], latents)


def _step(nets, channels, guidance_scale, state, row, noise) -> State:
    return step(denoiser(nets, channels, guidance_scale), state, row, noise)


# Apart from the step, so that edits and stochastic samplers share the others' program.
_step_noise = jax.jit(step_noise, static_argnums=2)


@jax.jit
def _keep(kept: Kept, state: State, alpha: Any, sigma: Any) -> State:
    """The state with the picture, at the noise level alpha x0 + sigma ε, where it is not free."""
    source = alpha * kept.latents + sigma * kept.noise
    return State(
        jnp.where(kept.free, state.latents, source), jnp.where(kept.free, state.x0, kept.latents)
    )
