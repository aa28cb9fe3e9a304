"""The loop that runs a sampler: shapes, types, noise, compilation, and what it converges to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmv2.diffusion.samplers import ddim, dpm_solver_pp_2m, euler, euler_ancestral
from fmv2.diffusion.sampling import sample, sample_trajectory
from fmv2.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
KEY = jax.random.key(0)


def denoise(latents, timestep):
    return jnp.sin(latents + timestep / 300)


def stochastic_ddim(schedule, num_steps):
    return ddim(schedule, num_steps, eta=1.0)


BUILDERS = [ddim, stochastic_ddim, dpm_solver_pp_2m, euler, euler_ancestral]


@pytest.mark.parametrize("build", BUILDERS)
def test_recovers_gaussian_data(build):
    """For data N(mean, std²) the exact noise is known: sampling must end in that distribution."""
    mean, std = 1.5, 0.3
    alphas_cumprod = jnp.asarray(SCHEDULE.alphas_cumprod)

    def exact_noise(latents, timestep):
        a = jnp.interp(timestep, jnp.arange(1000.0), alphas_cumprod)
        return jnp.sqrt(1 - a) * (latents - jnp.sqrt(a) * mean) / (a * std**2 + 1 - a)

    sampler = build(SCHEDULE, 100)
    latents = sampler.initial_latents(jax.random.normal(KEY, (4096,)))
    result = sample(exact_noise, latents, sampler, key=KEY)
    np.testing.assert_allclose(result.mean(), mean, atol=0.05)
    np.testing.assert_allclose(result.std(), std, atol=0.05)


@pytest.mark.parametrize("shape", [(3,), (2, 4, 4, 4), (2, 3, 4, 4, 2)])
@pytest.mark.parametrize("build", BUILDERS)
def test_sample_is_the_end_of_the_trajectory_at_any_shape(build, shape):
    sampler = build(SCHEDULE, 6)
    latents = sampler.initial_latents(jax.random.normal(KEY, shape))
    result = sample(denoise, latents, sampler, key=KEY)
    trajectory = sample_trajectory(denoise, latents, sampler, key=KEY)
    assert result.dtype == jnp.float32
    assert trajectory.latents.shape == trajectory.x0.shape == (6, *shape)
    np.testing.assert_array_equal(result, trajectory.latents[-1], strict=True)


def test_net_input_has_unit_variance():
    seen = []

    def spy(latents, timestep):
        jax.debug.callback(lambda std: seen.append(float(std)), latents.std(), ordered=True)
        return latents

    for build in BUILDERS:
        sampler = build(SCHEDULE, 2)
        noise = jax.random.normal(KEY, (4096,))
        sample(spy, sampler.initial_latents(noise), sampler, key=KEY)
        jax.effects_barrier()
        np.testing.assert_allclose(seen[0], noise.std(), rtol=0.01)
        seen.clear()


def test_samplers_of_as_many_steps_share_one_program():
    traces = []

    @jax.jit
    def generate(sampler, noise, key):
        traces.append(sampler.stochastic)
        return sample(denoise, sampler.initial_latents(noise), sampler, key=key)

    noise = jax.random.normal(KEY, (2, 4))
    results = [generate(build(SCHEDULE, 5), noise, KEY) for build in BUILDERS]
    assert sorted(traces) == [False, True]
    assert len({result.tobytes() for result in map(np.asarray, results)}) == len(BUILDERS)


def test_the_key_alone_decides_the_noise():
    sampler = euler_ancestral(SCHEDULE, 5)
    latents = sampler.initial_latents(jnp.ones((2, 4)))
    one, same, other = (
        sample(denoise, latents, sampler, key=jax.random.key(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01


def test_a_bfloat16_net_runs_in_a_float32_loop():
    sampler = dpm_solver_pp_2m(SCHEDULE, 10)
    latents = sampler.initial_latents(jax.random.normal(KEY, (64,), jnp.bfloat16))

    def narrow(latents, timestep):
        assert latents.dtype == timestep.dtype == jnp.float32
        return denoise(latents.astype(jnp.bfloat16), timestep.astype(jnp.bfloat16))

    result = sample(narrow, latents, sampler)
    assert result.dtype == jnp.float32


def test_refuses_a_stochastic_sampler_without_key():
    sampler = euler_ancestral(SCHEDULE, 5)
    with pytest.raises(ValueError, match="draws noise at each step, got key=None"):
        sample(denoise, jnp.ones((2, 4)), sampler)


@pytest.mark.parametrize("build", [ddim, dpm_solver_pp_2m, euler, euler_ancestral])
def test_refuses_to_start_midway_from_noise_alone(build):
    sampler = build(SCHEDULE, 5, start=2)
    with pytest.raises(ValueError, match="starts midway needs x0, got None"):
        sampler.initial_latents(jnp.ones((2, 4)))
