"""The terms of the objective: functions of static shapes, without a loop over samples or masks.

Papers: Face-MakeUpV2 (arXiv 2510.21775); Hang et al. 2023 (min-SNR weighting).
"""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.errors import UserError

MapLoss = Literal["mass", "upstream", "none"]

# A TPU would round the factors to bfloat16, and these sums are nothing beside a net's.
_einsum = partial(jnp.einsum, precision="highest")
_LEAST = 1e-12
"""Attention that counts as none."""


def noise_loss(
    predicted: Float[Array, "b h w c"],
    target: Float[Array, "b h w c"],
    timesteps: Int[Array, " b"],
    schedule: NoiseSchedule,
    *,
    min_snr_gamma: float | None = None,
) -> Float[Array, ""]:
    """Mean squared error of the prediction, float32.

    Args:
      predicted: by the net, in the schedule's own form.
      target: what it should have said, see `NoiseSchedule.target`.
      timesteps: of each sample.
      schedule: for the signal-to-noise ratio, and for what is predicted.
      min_snr_gamma: weight the error of x₀ by min(SNR, gamma); None weights all samples alike.
    """
    error = jnp.square(predicted.astype(jnp.float32) - target.astype(jnp.float32))
    per_sample = error.mean(axis=(1, 2, 3))
    if min_snr_gamma is not None:
        snr = schedule.snr(timesteps)
        clipped = jnp.minimum(snr, min_snr_gamma)
        # What one unit of error in the prediction is in x₀'s, squared, over the signal-to-noise.
        match schedule.prediction_type:
            case "epsilon":
                weight = jnp.where(snr > 0, clipped / jnp.where(snr > 0, snr, 1.0), 1.0)
            case "v_prediction":
                weight = clipped / (snr + 1)
            case "sample":
                weight = clipped
        per_sample = weight * per_sample
    return per_sample.mean()


def map_loss(
    attention: Mapping[int, Float[Array, "b heads q t"]],
    token_mask: Bool[Array, "b k t"],
    masks: Float[Array, "b k g g"],
    valid: Bool[Array, "b k"],
    form: MapLoss,
) -> Float[Array, ""]:
    """How far the attention of each phrase's tokens is from the phrase's region.

    The mean over all valid phrases of the batch, summed over layers; 0 where there are none.

    Args:
      attention: probabilities of the text cross-attention at this grid, q = g·g, by layer.
      token_mask: the tokens of phrase k.
      masks: the fraction of each cell in its region.
      valid: which phrases count. One without tokens never does.
      form: "mass": the part of the phrase's attention, of all heads together, that falls outside
        its region, which a map can bring to 0. Inside are the cells that the region covers at least
        half as much as the one it covers most, so that brows and lips keep theirs on any grid;
        where it covers none, the phrase does not count. "upstream": the published squared
        difference between each token's probability and the region's mask (binarised at one half),
        of which the tokens' mean is one more column; since probabilities over tokens sum to 1, two
        tokens that share a region cannot bring it to 0. "none": 0.
    """
    if form == "none":
        return jnp.zeros(())
    tokens = token_mask.astype(jnp.float32)
    valid = valid & token_mask.any(axis=-1)
    cover = masks.reshape(*masks.shape[:2], -1)
    if form == "mass":
        most = cover.max(axis=-1, keepdims=True)
        region, term, valid = (cover >= most / 2), _mass_outside, valid & (most[..., 0] > 0)
    else:
        region, term = (cover > 0.5), _squared_difference
    return _of_phrases(attention, tokens, region.astype(jnp.float32), valid, term)


def spread_loss(
    attention: Mapping[int, Float[Array, "b heads q t"]],
    token_mask: Bool[Array, "b k t"],
    masks: Float[Array, "b k g g"],
    valid: Bool[Array, "b k"],
) -> Float[Array, ""]:
    """How unevenly each phrase looks at its region: `map_loss` is content with one cell of it.

    KL of where all heads together look from how far each cell lies in the region, in nats: 0 where
    all of the region is looked at alike and nothing beside it. Arguments and mean as `map_loss` has
    them; a phrase whose region covers nothing does not count.
    """
    tokens = token_mask.astype(jnp.float32)
    cover = masks.reshape(*masks.shape[:2], -1).astype(jnp.float32)
    valid = valid & token_mask.any(axis=-1) & (cover.max(axis=-1) > 0)
    return _of_phrases(attention, tokens, cover, valid, _divergence)


def _of_phrases(attention, tokens, region, valid, term):
    """The mean of a term over all valid phrases, summed over layers."""

    def layer(probabilities):
        per_phrase = term(probabilities, tokens, region)
        return jnp.sum(jnp.where(valid, per_phrase, 0)) / jnp.maximum(valid.sum(), 1)

    return jnp.sum(jnp.stack([layer(probabilities) for probabilities in attention.values()]))


def _looked(probabilities, tokens):
    """Where each phrase looks: a distribution over the cells."""
    # A head that does not look at the phrase has no say: alone, its 1e-9 would weigh as much.
    of_phrase = _einsum("bhqt,bkt->bkq", probabilities, tokens)
    return of_phrase / jnp.maximum(of_phrase.sum(axis=-1, keepdims=True), _LEAST)


def _mass_outside(probabilities, tokens, region):
    return 1 - _einsum("bkq,bkq->bk", _looked(probabilities, tokens), region)


def _divergence(probabilities, tokens, region):
    wanted = region / jnp.maximum(region.sum(axis=-1, keepdims=True), _LEAST)
    looked = jnp.maximum(_looked(probabilities, tokens), _LEAST)
    return jnp.sum(jax.scipy.special.rel_entr(wanted, looked), axis=-1)


def _squared_difference(probabilities, tokens, region):
    region = region[:, :, None]
    count = jnp.maximum(tokens.sum(axis=-1), 1)[:, :, None, None]
    of_phrase = _einsum("bhqt,bkt->bkhq", probabilities, tokens)
    squares = _einsum("bhqt,bkt->bkhq", jnp.square(probabilities), tokens)
    # Σ over the phrase's tokens of (p - m)², and the same of their mean.
    each = squares - 2 * region * of_phrase + count * jnp.square(region)
    mean = jnp.square(of_phrase / count - region)
    return ((each + mean) / (count + 1)).mean(axis=(2, 3))


def identity_loss(
    embedding: Float[Array, "n e"],
    identity: Float[Array, "n e"],
    weight: Float[Array, " n"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """1 - cos between the faces seen in the estimated images and the ones wanted.

    Args:
      embedding: by a face encoder, of the estimates of x₀.
      identity: the target, of any length.
      weight: of each sample, ᾱ_t for the method; 0 takes it out.
    Returns:
      the loss, Σ weight·(1 - cos) over the number of samples with weight; and their mean cosine.
    """
    cosine = jnp.sum(_unit(embedding) * _unit(identity), axis=-1)
    counts = weight > 0
    number = jnp.maximum(counts.sum(), 1)
    loss = jnp.sum(jnp.where(counts, weight * (1 - cosine), 0)) / number
    return loss, jnp.sum(jnp.where(counts, cosine, 0)) / number


def _unit(x: Float[Array, "n e"]) -> Float[Array, "n e"]:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


def uniform_timesteps(key: Array, batch: int, total: int) -> Int[Array, " b"]:
    """Training steps, every one of `total` alike."""
    return jax.random.randint(key, (batch,), 0, total)


def cubic_timesteps(
    key: Array, batch: int, total: int, *, every: int | None = None, bound: int = 0
) -> Int[Array, " b"]:
    """Training steps of which four in five lie in the noisier half, where a picture's layout is
    decided: total · (1 - u³), u uniform. Of samples 0, every, 2·every, … all lie below `bound`.

    Source: Mou et al. 2023 (T2I-Adapter).
    Raises:
      UserError: the batch is no multiple of `every`.
    """
    noisy, below = jax.random.split(key)
    steps = (total * (1 - jax.random.uniform(noisy, (batch,)) ** 3)).astype(jnp.int32)
    steps = jnp.minimum(steps, total - 1)
    if every is None:
        return steps
    if batch % every:
        raise UserError(f"one sample in {every} out of {batch}: expected a multiple of {every}")
    low = jax.random.randint(below, (batch,), 0, bound)
    return jnp.where(jnp.arange(batch) % every == 0, low, steps)


def stratified_timesteps(
    key: Array, batch: int, every: int, bound: int, total: int
) -> Int[Array, " b"]:
    """Training steps, uniform over [0, total) for the batch as a whole, where samples 0, every,
    2·every, … are sure to lie below `bound`: the ones that an image is estimated from.

    Raises:
      UserError: one sample in `every` is more than the steps below `bound` are of all: the rest
        cannot make up for it; or the batch is no multiple of `every`.
    """
    share, low = 1 / every, bound / total
    faults = []
    if bound > total or share > low:
        faults.append(
            f"one sample in {every} below step {bound} of {total}: expected a bound of "
            f"{-(-total // every)} to {total}, so that all steps stay equally likely"
        )
    if batch % every:
        faults.append(f"one sample in {every} out of {batch}: expected a multiple of {every}")
    if faults:
        raise UserError("; ".join(faults))
    pick, below, above = jax.random.split(key, 3)
    low_steps = jax.random.randint(below, (batch,), 0, bound)
    if bound == total:
        return low_steps
    # The others go below the bound just so often that every step is drawn alike in the mean.
    rest = (low - share) / (1 - share)
    sure = jnp.arange(batch) % every == 0
    goes_below = sure | (jax.random.uniform(pick, (batch,)) < rest)
    return jnp.where(goes_below, low_steps, jax.random.randint(above, (batch,), bound, total))
