"""Every sampler's whole trajectory against the diffusers scheduler of the same config."""

import itertools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_euler_ancestral_discrete

from fmv2.diffusion.samplers import ddim, dpm_solver_pp_2m, euler, euler_ancestral
from fmv2.diffusion.sampling import sample_trajectory
from fmv2.diffusion.schedule import NoiseSchedule
from tests.parity import relative_error

# diffusers hands torch tensors to numpy in ways that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SHAPE = (2, 4, 4, 3)
KEY = jax.random.key(3)
SD = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
}
SPACINGS = [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)]
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
STEPS = [5, 20, 50]
TOLERANCE = 1e-4
# diffusers' Euler steps x + (x - x0) / σ · (σ' - σ) leave the float32 rounding of a state of size σ
# in one of size σ'. Where a step shrinks the noise more than this, its formulas run in float64.
SHRINKAGE = 200

SCHEDULERS = {
    ddim: diffusers.DDIMScheduler,
    dpm_solver_pp_2m: diffusers.DPMSolverMultistepScheduler,
    euler: diffusers.EulerDiscreteScheduler,
    euler_ancestral: diffusers.EulerAncestralDiscreteScheduler,
}


def fake_net(latents, timestep, sin):
    """Nonlinear in the latents and unlike at every timestep."""
    return 0.8 * sin(1.5 * latents + 0.005 * timestep) + 0.2 * latents


def denoise(latents, timestep):
    return fake_net(latents, timestep, jnp.sin)


run = jax.jit(sample_trajectory, static_argnums=0)


def grid(**axes):
    """Configs: the product of the axes with spacing, zero SNR, prediction and steps."""
    axes = {"rescale_betas_zero_snr": [False, True], "prediction_type": PREDICTIONS} | axes
    cases = []
    for (spacing, offset), steps in itertools.product(SPACINGS, STEPS):
        for values in itertools.product(*axes.values()):
            config = dict(zip(axes, values, strict=True))
            config |= {"timestep_spacing": spacing, "steps_offset": offset}
            label = "-".join(map(str, (spacing, offset, *values, steps)))
            cases.append(pytest.param(config, steps, id=label))
    return cases


def undefined(config):
    """Noise prediction where the first state is pure noise: DDIM would divide by zero."""
    return (
        config["rescale_betas_zero_snr"]
        and config["prediction_type"] == "epsilon"
        and config["timestep_spacing"] != "leading"
    )


DDIM_GRID = grid(set_alpha_to_one=[True, False])
DEFINED = [case for case in DDIM_GRID if not undefined(case.values[0])]
UNDEFINED = [case for case in DDIM_GRID if undefined(case.values[0])]


class Double(torch.Tensor):
    """A float64 tensor that stays so where a scheduler casts to float32."""

    def to(self, *_, **__):
        return self


def step_noise(steps):
    """What our samplers draw, step by step."""
    return [
        torch.from_numpy(np.array(jax.random.normal(jax.random.fold_in(KEY, i), SHAPE)))
        for i in range(steps)
    ]


def reference(scheduler, steps, latents, start=0, feed_noise=False, **step_arguments):
    """The scheduler's latents and x0 after each step."""
    trajectory = []
    for t, noise in zip(scheduler.timesteps[start:], step_noise(steps - start), strict=True):
        if feed_noise:
            step_arguments["variance_noise"] = noise
        output = fake_net(scheduler.scale_model_input(latents, t), t.float(), torch.sin)
        step = scheduler.step(output, t, latents, **step_arguments)
        latents = step.prev_sample
        trajectory.append((latents, getattr(step, "pred_original_sample", None)))
    return trajectory


def worst_error(build, config, steps, start=0, build_arguments=None, step_arguments=None):
    """Max over steps of the relative error of latents and, where diffusers tells it, x0."""
    schedule = NoiseSchedule.from_config(SD | config)
    sampler = build(schedule, steps, start=start, **(build_arguments or {}))
    scheduler = SCHEDULERS[build].from_config(SD | config)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)

    noise, x0 = np.random.standard_normal((2, *SHAPE)).astype(np.float32)
    if start:
        first = scheduler.timesteps[start].repeat(SHAPE[0])
        latents = scheduler.add_noise(torch.from_numpy(x0), torch.from_numpy(noise), first)
        ours = sampler.initial_latents(noise, x0)
    else:
        latents = torch.from_numpy(noise) * scheduler.init_noise_sigma
        ours = sampler.initial_latents(noise)
    assert relative_error(ours, latents) < 1e-6
    np.testing.assert_allclose(sampler.table.timestep, scheduler.timesteps[start:], rtol=1e-5)

    levels = getattr(scheduler, "sigmas", torch.ones(2))
    if max(levels[start:-2] / levels[start + 1 : -1], default=1) > SHRINKAGE:
        latents = latents.double().as_subclass(Double)
        scheduler.sigmas = scheduler.sigmas.double()
    trajectory = run(denoise, ours, sampler, key=KEY)
    expected = reference(scheduler, steps, latents, start, **(step_arguments or {}))
    assert len(trajectory.latents) == len(expected) == steps - start
    return max(
        relative_error(mine, theirs)
        for i, pair in enumerate(expected)
        for mine, theirs in zip((trajectory.latents[i], trajectory.x0[i]), pair, strict=True)
        if theirs is not None
    )


@pytest.mark.parametrize(("config", "steps"), DEFINED)
def test_ddim(config, steps):
    assert worst_error(ddim, config, steps) < TOLERANCE


@pytest.mark.parametrize(("config", "steps"), DEFINED)
def test_stochastic_ddim(config, steps):
    # Not eta = 1: at zero SNR diffusers then takes the root of a rounded, negative zero.
    eta = 0.8
    error = worst_error(
        ddim,
        config,
        steps,
        build_arguments={"eta": eta},
        step_arguments={"eta": eta, "feed_noise": True},
    )
    assert error < TOLERANCE


def test_ancestral_ddim_starts_from_zero_snr():
    schedule = NoiseSchedule.from_config(
        SD
        | {
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        }
    )
    sampler = ddim(schedule, 50, eta=1.0)
    trajectory = run(denoise, jnp.ones(SHAPE), sampler, key=KEY)
    assert np.isfinite(trajectory.latents).all()


@pytest.mark.parametrize(("config", "steps"), UNDEFINED)
def test_ddim_refuses_noise_prediction_at_zero_snr(config, steps):
    with pytest.raises(ValueError, match="timestep 999 has zero SNR, where noise prediction"):
        ddim(NoiseSchedule.from_config(SD | config), steps)


@pytest.mark.parametrize(
    ("config", "steps"),
    grid(use_karras_sigmas=[False, True], final_sigmas_type=["zero", "sigma_min"]),
)
def test_dpm_solver_pp_2m(config, steps):
    assert worst_error(dpm_solver_pp_2m, config, steps) < TOLERANCE


@pytest.mark.parametrize("steps", [1, 2, 14, 15])
@pytest.mark.parametrize("euler_at_final", [False, True])
@pytest.mark.parametrize("lower_order_final", [False, True])
def test_dpm_solver_pp_2m_order_of_the_last_step(lower_order_final, euler_at_final, steps):
    config = {
        "lower_order_final": lower_order_final,
        "euler_at_final": euler_at_final,
        "final_sigmas_type": "sigma_min",
    }
    assert worst_error(dpm_solver_pp_2m, config, steps) < TOLERANCE


@pytest.mark.parametrize(
    ("config", "steps"),
    grid(use_karras_sigmas=[False, True], final_sigmas_type=["zero", "sigma_min"]),
)
def test_euler(config, steps):
    assert worst_error(euler, config, steps) < TOLERANCE


@pytest.fixture
def same_noise(monkeypatch):
    """Gives the ancestral scheduler, which takes no noise, what our sampler draws."""

    def draw(steps):
        noise = iter(step_noise(steps))
        monkeypatch.setattr(
            scheduling_euler_ancestral_discrete, "randn_tensor", lambda *_, **__: next(noise)
        )

    return draw


# diffusers' ancestral sampler knows no "sample" prediction.
@pytest.mark.parametrize(("config", "steps"), grid(prediction_type=["epsilon", "v_prediction"]))
def test_euler_ancestral(config, steps, same_noise):
    same_noise(steps)
    assert worst_error(euler_ancestral, config, steps) < TOLERANCE


@pytest.mark.parametrize("build", SCHEDULERS)
@pytest.mark.parametrize("start", [1, 8, 19])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_start_midway(build, start, prediction_type, same_noise):
    same_noise(20 - start)
    config = {"prediction_type": prediction_type, "timestep_spacing": "leading", "steps_offset": 1}
    assert worst_error(build, config, 20, start) < TOLERANCE


@pytest.mark.parametrize("build", SCHEDULERS)
@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True},
        {"trained_betas": np.linspace(0.002, 0.03, 400).tolist(), "num_train_timesteps": 400},
        {"steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True},  # SD 1.5's
    ],
    ids=["linear", "cosine", "cosine-karras", "trained", "sd15"],
)
@pytest.mark.parametrize("steps", [7, 30])
def test_betas_and_default_spacing(build, config, steps, same_noise):
    same_noise(steps)
    assert worst_error(build, config | {"prediction_type": "v_prediction"}, steps) < TOLERANCE


@pytest.mark.parametrize("build", SCHEDULERS)
def test_refuses_steps_out_of_range(build):
    schedule = NoiseSchedule(num_train_timesteps=100)
    with pytest.raises(ValueError, match=r"num_steps must be at least 1 .* got 0 and 0"):
        build(schedule, 0)
    with pytest.raises(ValueError, match=r"start in \[0, num_steps\), got 10 and 10"):
        build(schedule, 10, start=10)
    most = 99 if build is dpm_solver_pp_2m else 100
    with pytest.raises(ValueError, match=rf"num_steps must be at most {most} .* got 101"):
        build(schedule, 101)
    build(schedule, most)


@pytest.mark.parametrize("build", SCHEDULERS)
def test_refuses_an_offset_beyond_training(build):
    schedule = NoiseSchedule(timestep_spacing="leading", steps_offset=60)
    with pytest.raises(ValueError, match="steps_offset=60 puts the first of 20 steps at timestep"):
        build(schedule, 20)


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_refuses_eta_out_of_range(eta):
    with pytest.raises(ValueError, match=rf"eta must be in \[0, 1\], got {eta}"):
        ddim(NoiseSchedule(), 10, eta=eta)
