"""Each term against its paper's formula in float64 NumPy; what must not count does not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.errors import UserError
from train.losses import (
    cubic_timesteps,
    identity_loss,
    map_loss,
    noise_loss,
    spread_loss,
    stratified_timesteps,
)

TIMESTEPS = np.array([0, 3, 250, 700, 999])

map_term = jax.jit(map_loss, static_argnums=4)


def normal(*shape):
    return np.random.standard_normal(shape).astype(np.float32)


def schedule(prediction_type="epsilon", **fields):
    return NoiseSchedule(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        **fields,
    )


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_noise_term_is_the_papers(prediction_type, gamma):
    """Ho et al. 2020, eq. 14; Salimans & Ho 2022, appendix D; Hang et al. 2023, section 3.4."""
    x0, noise, predicted = (normal(5, 4, 3, 2) for _ in range(3))
    plan = schedule(prediction_type)
    target = plan.target(*map(jnp.asarray, (x0, noise, TIMESTEPS)))
    actual = noise_loss(
        jnp.asarray(predicted), target, jnp.asarray(TIMESTEPS), plan, min_snr_gamma=gamma
    )

    abar = plan.alphas_cumprod.astype(np.float64)[TIMESTEPS][:, None, None, None]
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    x0, noise, predicted = (x.astype(np.float64) for x in (x0, noise, predicted))
    velocity = alpha * noise - sigma * x0
    wanted = {"epsilon": noise, "v_prediction": velocity, "sample": x0}[prediction_type]
    error = (predicted - wanted) ** 2
    snr = alpha**2 / sigma**2
    if gamma is not None:
        smaller = np.minimum(snr, gamma)
        # One weight min(SNR, γ) on x₀'s error, in each parametrisation's own unit.
        unit = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction_type]
        error = smaller / unit * error
    assert actual == pytest.approx(error.mean(), rel=1e-5)


def test_the_weighted_terms_all_mean_the_error_of_x0():
    """min(SNR, γ) |x₀ - x̂₀|² however x̂₀ was predicted."""
    x0, noise, estimate = (jnp.asarray(normal(5, 4, 3, 2)) for _ in range(3))
    timesteps = jnp.asarray(TIMESTEPS)
    losses = []
    for kind in ("epsilon", "v_prediction", "sample"):
        plan = schedule(kind)
        noisy = plan.add_noise(x0, noise, timesteps)
        forms = plan.predictions(estimate, noisy, timesteps, prediction_type="sample")
        losses.append(
            noise_loss(
                getattr(forms, kind),
                plan.target(x0, noise, timesteps),
                timesteps,
                plan,
                min_snr_gamma=5.0,
            )
        )
    np.testing.assert_allclose(losses, losses[2], rtol=1e-3)


def test_pure_noise_has_a_finite_weight():
    plan = schedule(rescale_betas_zero_snr=True)
    last, x = jnp.array([999]), jnp.ones((1, 2, 2, 1))
    assert plan.snr(last)[0] == 0
    term = jax.value_and_grad(lambda p: noise_loss(p, 0 * x, last, plan, min_snr_gamma=5.0))
    value, gradient = jax.jit(term)(x)
    assert value == 1  # the limit of min(SNR, γ) / SNR
    assert jnp.isfinite(gradient).all()


def test_the_noise_term_of_half_precision_is_summed_in_full():
    half = jnp.full((1, 64, 64, 4), 1 + 2**-7, jnp.bfloat16)
    value = noise_loss(half, jnp.ones_like(half), jnp.array([5]), schedule())
    assert value.dtype == jnp.float32
    assert value == 2**-14


def phrases(layers=(7, 19), b=3, heads=2, grid=4, k=5, t=9):
    """Attention as softmax gives it, phrases that overlap, regions of every cover."""
    maps = {}
    for layer in layers:
        logits = np.exp(2 * normal(b, heads, grid * grid, t))
        maps[layer] = jnp.asarray(logits / logits.sum(-1, keepdims=True))
    tokens = np.random.random((b, k, t)) < 0.4
    masks = np.clip(np.random.uniform(-0.5, 1.5, (b, k, grid, grid)), 0, 1).astype(np.float32)
    valid = np.random.random((b, k)) < 0.6
    tokens[0, 0], valid[0, 0] = False, True  # cut off
    tokens[1, 1, :3], valid[1, 1] = True, True
    masks[1, 1], masks[1, 1, 0, :2] = 0, (0.2, 0.09)  # a brow: no cell half full
    return maps, jnp.asarray(tokens), jnp.asarray(masks), jnp.asarray(valid)


def published(maps, tokens, masks, valid):
    """The published term, a loop over all that it averages."""
    total = 0.0
    for probabilities in maps.values():
        of_masks = []
        for sample, phrase in np.argwhere(np.asarray(valid)):
            words = np.flatnonzero(tokens[sample, phrase])
            if not len(words):
                continue
            region = np.asarray(masks, np.float64)[sample, phrase].ravel() > 0.5
            squares = []
            for head in np.asarray(probabilities, np.float64)[sample]:
                columns = [head[:, word] for word in words]
                columns.append(np.mean(columns, axis=0))
                squares += [np.mean((column - region) ** 2) for column in columns]
            of_masks.append(np.mean(squares))
        total += np.mean(of_masks)
    return total


def outside(*given):
    """The mass form, likewise: the attention outside, as a part of the phrase's attention."""
    return of_phrases(lambda mass, cover: mass[cover < cover.max() / 2].sum() / mass.sum(), *given)


def divergence(*given):
    """KL, which SciPy makes of what is not normalised."""
    return of_phrases(lambda mass, cover: scipy.stats.entropy(cover, mass), *given)


def of_phrases(value, maps, tokens, masks, valid):
    """Of each phrase's attention and its region's cover."""
    total = 0.0
    for probabilities in maps.values():
        of_masks = []
        for sample, phrase in np.argwhere(np.asarray(valid)):
            words = np.flatnonzero(tokens[sample, phrase])
            cover = np.asarray(masks)[sample, phrase].ravel()
            if not len(words) or not cover.any():
                continue
            heads = np.asarray(probabilities, np.float64)[sample]
            mass = sum(head[:, word] for head in heads for word in words)
            of_masks.append(value(mass, cover))
        total += np.mean(of_masks)
    return total


TERMS = {
    "upstream": partial(map_loss, form="upstream"),
    "mass": partial(map_loss, form="mass"),
    "spread": spread_loss,
}
REFERENCES = {"upstream": published, "mass": outside, "spread": divergence}
each_term = pytest.mark.parametrize("name", TERMS)


@each_term
def test_each_term_of_phrases_is_its_definition(name):
    given = phrases()
    expected = REFERENCES[name](*given)
    assert jax.jit(TERMS[name])(*given) == pytest.approx(expected, rel=1e-5)


@each_term
def test_phrases_that_do_not_count_have_no_part(name):
    gradient_of = jax.jit(jax.value_and_grad(TERMS[name]))
    maps, tokens, masks, valid = phrases()
    value, gradient = gradient_of(maps, tokens, masks, valid)
    counts = valid & tokens.any(-1)
    assert (counts != valid).any()
    tokens = jnp.where(valid[..., None], tokens, ~tokens)
    masks = jnp.where(counts[..., None, None], masks, 1 - masks)
    other, other_gradient = gradient_of(maps, tokens, masks, valid)
    assert other == value
    jax.tree.map(np.testing.assert_array_equal, other_gradient, gradient)


@each_term
def test_a_batch_without_phrases_has_no_map_term(name):
    maps, tokens, masks, valid = phrases()
    value, gradient = jax.jit(jax.value_and_grad(TERMS[name]))(maps, tokens, masks, valid & False)
    assert value == 0
    assert not any(jnp.any(x) for x in jax.tree.leaves(gradient))  # and no NaN: that is true


def test_no_form_no_term():
    assert map_term(*phrases(), "none") == 0


def test_two_tokens_of_one_region():
    """The published form cannot fall below a quarter of the region there; the mass form is 0."""
    masks = np.zeros((1, 1, 2, 2), np.float32)
    masks[0, 0, 0] = 1
    attention = np.zeros((1, 1, 4, 3), np.float32)
    attention[0, 0, :2, :2], attention[0, 0, 2:, 2] = 0.5, 1
    given = {3: jnp.asarray(attention)}, jnp.array([[[True, True, False]]])
    rest = jnp.asarray(masks), jnp.array([[True]])
    assert map_term(*given, *rest, "upstream") == 0.25 / 2
    assert map_term(*given, *rest, "mass") == 0


def test_thin_and_empty_regions_in_the_mass_form():
    """A brow covers no cell by half, yet has an inside; a region that the crop cut off has none."""
    masks = np.zeros((1, 2, 2, 2), np.float32)
    masks[0, 0, 0] = 0.3, 0.2
    attention = np.full((1, 1, 4, 1), 0.25, np.float32)
    given = {3: jnp.asarray(attention)}, jnp.ones((1, 2, 1), bool), jnp.asarray(masks)
    assert map_term(*given, jnp.array([[True, True]]), "mass") == 0.5
    assert map_term(*given, jnp.array([[False, True]]), "mass") == 0


def test_one_cell_of_a_region_is_not_the_region():
    """Mass is content with it; spread is 0 where all of it is looked at alike."""
    masks = np.ones((1, 1, 2, 2), np.float32)
    masks[0, 0, 1] = 0
    rest = jnp.ones((1, 1, 1), bool), jnp.asarray(masks), jnp.array([[True]])
    looks = {"one": [1.0, 0, 0, 0], "both": [0.5, 0.5, 0, 0]}
    one, both = ({3: jnp.asarray(look)[None, None, :, None]} for look in looks.values())
    assert map_term(one, *rest, "mass") == map_term(both, *rest, "mass") == 0
    assert spread_loss(both, *rest) == 0 < spread_loss(one, *rest)


def test_the_identity_term_is_one_minus_the_cosine():
    seen, wanted, weight = normal(6, 8), 3 * normal(6, 8), np.float32([0.9, 0, 0.5, 0.1, 0, 1])
    loss, cosine = identity_loss(*map(jnp.asarray, (seen, wanted, weight)))
    seen, wanted = seen.astype(np.float64), wanted.astype(np.float64)
    cosines = (seen * wanted).sum(1)
    cosines /= np.linalg.norm(seen, axis=1) * np.linalg.norm(wanted, axis=1)
    assert loss == pytest.approx((weight * (1 - cosines)).sum() / 4, rel=1e-5)
    assert cosine == pytest.approx(cosines[weight > 0].mean(), rel=1e-5)


@pytest.mark.parametrize("case", ["no weight", "no embedding", "no identity"])
def test_what_has_no_identity_gives_finite_gradients(case):
    seen, wanted, weight = jnp.asarray(normal(2, 8)), jnp.asarray(normal(2, 8)), jnp.ones(2)
    if case == "no embedding":
        seen = seen.at[0].set(0)
    elif case == "no identity":
        wanted = wanted.at[0].set(0)
    else:
        weight = jnp.zeros(2)
    term = jax.jit(jax.value_and_grad(identity_loss, has_aux=True))
    (loss, cosine), gradient = term(seen, wanted, weight)
    assert jnp.isfinite(jnp.stack([loss, cosine])).all()
    assert jnp.isfinite(gradient).all()
    if case == "no weight":
        assert loss == cosine == 0
        assert not gradient.any()


@pytest.mark.parametrize(("every", "bound", "total"), [(8, 250, 1000), (4, 5, 20), (1, 20, 20)])
def test_stratified_timesteps(every, bound, total):
    """The first of every few lies below the bound, and yet all steps come alike."""
    batch, draws = 4 * every, 60_000 // (4 * every)
    keys = jax.random.split(jax.random.key(0), draws)
    drawn = np.asarray(
        jax.jit(jax.vmap(lambda key: stratified_timesteps(key, batch, every, bound, total)))(keys)
    )
    assert drawn.shape == (draws, batch)
    assert drawn[:, ::every].max() < bound
    if every > 1:
        assert drawn[:, 1::every].max() >= bound
    counts = np.bincount(drawn.ravel(), minlength=total)
    assert len(counts) == total
    expected = drawn.size / total
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # Normal for many cells, with mean n - 1 and variance 2 (n - 1): four deviations.
    assert abs(chi_square - (total - 1)) < 4 * np.sqrt(2 * (total - 1))


def test_cubic_timesteps():
    """Four in five are of the noisier half, as u³ < 1/2 is; the sure ones lie below the bound."""
    drawn = np.asarray(cubic_timesteps(jax.random.key(0), 100_000, 1000))
    assert (drawn.min(), drawn.max()) == (0, 999)
    assert abs((drawn >= 500).mean() - 0.5 ** (1 / 3)) < 0.005
    sure = np.asarray(cubic_timesteps(jax.random.key(1), 4096, 1000, every=8, bound=250))
    assert sure[::8].max() < 250
    assert abs((sure.reshape(-1, 8)[:, 1:] >= 500).mean() - 0.5 ** (1 / 3)) < 0.03
    with pytest.raises(UserError, match="one sample in 8 out of 12"):
        cubic_timesteps(jax.random.key(0), 12, 1000, every=8, bound=250)


def test_every_device_has_as_many_sure_ones():
    """The samples that are decoded do not depend on chance, and a device's part holds its own."""
    drawn = stratified_timesteps(jax.random.key(1), 32, 4, 250, 1000).reshape(8, 4)
    assert (drawn[:, 0] < 250).all()


@pytest.mark.parametrize(
    ("batch", "every", "bound", "message"),
    [
        (16, 8, 100, "one sample in 8 below step 100 of 1000: expected a bound of 125 to 1000"),
        (16, 8, 1001, "expected a bound of 125 to 1000"),
        (12, 8, 100, "expected a bound of 125 .*; one sample in 8 out of 12: expected a multiple"),
    ],
)
def test_timesteps_that_cannot_be_uniform_are_refused(batch, every, bound, message):
    with pytest.raises(UserError, match=message):
        stratified_timesteps(jax.random.key(0), batch, every, bound, 1000)
