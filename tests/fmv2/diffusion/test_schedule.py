"""Noise schedules against diffusers' schedulers, and configs that are refused."""

import dataclasses
import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.training_utils import compute_snr

from fmv2.diffusion.schedule import NoiseSchedule
from tests.parity import relative_error

# diffusers hands torch tensors to numpy in ways that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

# stable-diffusion-v1-5/scheduler/scheduler_config.json
SD15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
BETAS = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    },
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {
        "trained_betas": np.linspace(0.002, 0.03, 400).tolist(),
        "num_train_timesteps": 400,
    },
}
SHAPE = (4, 8, 6, 3)
TIMESTEPS = np.array([0, 1, 200, 399])


def pair(**config):
    """Ours and DDPMScheduler of the same config."""
    config = {"clip_sample": False} | config
    return NoiseSchedule.from_config(config), diffusers.DDPMScheduler.from_config(config)


def draws(count):
    return np.random.standard_normal((count, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("betas", BETAS)
def test_tables_equal_diffusers(betas):
    ours, theirs = pair(**BETAS[betas])
    np.testing.assert_array_equal(ours.alphas_cumprod, theirs.alphas_cumprod.numpy(), strict=True)
    np.testing.assert_allclose(ours.sigmas, sigmas(theirs), rtol=1e-6)


@pytest.mark.parametrize("betas", BETAS)
def test_zero_snr_tables_equal_diffusers_to_rounding(betas):
    # torch's float32 square root differs between machines in its last bit, and 1 - ᾱ magnifies it.
    ours, theirs = pair(**BETAS[betas], rescale_betas_zero_snr=True)
    np.testing.assert_allclose(
        ours.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=0, atol=5e-7
    )
    np.testing.assert_allclose(ours.sigmas, sigmas(theirs), rtol=2e-3)
    assert ours.alphas_cumprod[-1] == 0
    assert ours.sigmas[-1] == pytest.approx(2**12, rel=1e-6)


def sigmas(scheduler):
    """diffusers' σ/α of each training step, ascending."""
    euler = diffusers.EulerDiscreteScheduler.from_config(scheduler.config)
    return euler.sigmas.numpy()[-2::-1]


@pytest.mark.parametrize("zero_snr", [False, True])
def test_noising_equals_diffusers(zero_snr):
    ours, theirs = pair(**BETAS["scaled_linear"], rescale_betas_zero_snr=zero_snr)
    timesteps = np.array([0, 1, 500, 999])
    x0, noise = draws(2)
    torch_args = torch.from_numpy(x0), torch.from_numpy(noise), torch.from_numpy(timesteps)

    noisy = ours.add_noise(x0, noise, timesteps)
    velocity = ours.velocity(x0, noise, timesteps)
    assert relative_error(noisy, theirs.add_noise(*torch_args)) < 1e-6
    assert relative_error(velocity, theirs.get_velocity(*torch_args)) < 1e-6
    assert relative_error(ours.snr(timesteps), compute_snr(theirs, torch_args[2])) < 1e-5


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_predictions_equal_diffusers_x0(prediction_type):
    ours, theirs = pair(**BETAS["scaled_linear"], prediction_type=prediction_type)
    output, latents = draws(2)
    predicted = ours.predictions(output, latents, TIMESTEPS)
    for i, t in enumerate(TIMESTEPS):
        x0 = theirs.step(
            torch.from_numpy(output[i]), int(t), torch.from_numpy(latents[i])
        ).pred_original_sample
        assert relative_error(predicted.sample[i], x0) < 1e-5


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("betas", BETAS)
def test_every_form_of_a_prediction_gives_the_truth_back(betas, prediction_type):
    schedule = NoiseSchedule.from_config(BETAS[betas] | {"prediction_type": prediction_type})
    x0, noise = draws(2)
    latents = schedule.add_noise(x0, noise, TIMESTEPS)
    truth = {
        "epsilon": noise,
        "sample": x0,
        "v_prediction": schedule.velocity(x0, noise, TIMESTEPS),
    }
    np.testing.assert_array_equal(
        schedule.target(x0, noise, TIMESTEPS), truth[prediction_type], strict=True
    )

    read = schedule.predictions(truth[prediction_type], latents, TIMESTEPS)
    for form, expected in truth.items():
        # x0 ↔ ε divides by α or σ, down to 0.006 here: rounding grows as much.
        assert relative_error(getattr(read, form), expected) < 1e-4
        # and back, through the form as the input
        back = schedule.predictions(getattr(read, form), latents, TIMESTEPS, form)
        assert relative_error(getattr(back, prediction_type), truth[prediction_type]) < 1e-4


def test_one_timestep_serves_the_batch_and_jit_agrees():
    schedule = NoiseSchedule.from_config(SD15)
    x0, noise = draws(2)
    single = schedule.add_noise(x0, noise, jnp.asarray(7))
    batched = jax.jit(schedule.add_noise)(x0, noise, jnp.full(4, 7))
    assert relative_error(single, batched) < 1e-6


def test_reads_the_shipped_sd15_config():
    assert NoiseSchedule.from_config(SD15) == NoiseSchedule(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        set_alpha_to_one=False,
    )


# EDM's models know no betas, and DPMSolverSDEScheduler cannot be made without torchsde.
@pytest.mark.parametrize(
    "name",
    sorted(
        {k.name for k in KarrasDiffusionSchedulers} - {"EDMEulerScheduler", "DPMSolverSDEScheduler"}
    ),
)
def test_reads_what_every_exchangeable_scheduler_writes(name, tmp_path):
    betas = {k: v for k, v in SD15.items() if k.startswith("beta")}
    getattr(diffusers, name)(**betas).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    if "clip_sample" in config:
        config["clip_sample"] = False
    schedule = NoiseSchedule.from_config(config)
    for field in dataclasses.fields(schedule):
        if config.get(field.name) is not None:
            assert getattr(schedule, field.name) == config[field.name]


def test_a_live_config_gives_way_to_our_defaults_where_its_file_was_silent():
    # PNDM's own default spacing is "leading", yet other samplers made from it take theirs.
    live = diffusers.PNDMScheduler.from_config(SD15).config
    assert live.timestep_spacing == "leading"
    assert NoiseSchedule.from_config(live) == NoiseSchedule.from_config(SD15)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"thresholding": True}, "thresholding=True is not supported: set it to False"),
        ({"clip_sample": True}, "clip_sample=True is not supported: set it to False"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas=True is not supported"),
        ({"solver_order": 3}, "solver_order=3 is not supported: set it to 2"),
        ({"algorithm_type": "sde-dpmsolver++"}, "algorithm_type='sde-dpmsolver\\+\\+' is not"),
        ({"variance_type": "learned_range"}, "variance_type='learned_range' is not supported"),
        ({"lambda_min_clipped": -5.1}, "lambda_min_clipped=-5.1 is not supported"),
        ({"sigma_data": 0.5}, "sigma_data=0.5 is not a known field"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid': expected 'linear' or 'scaled"),
        ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction': expected"),
        ({"timestep_spacing": "even"}, "timestep_spacing='even': expected None or 'leading'"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0: expected an integer of at least 1"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps='1000': expected an integer"),
        ({"steps_offset": -1}, "steps_offset=-1: expected an integer of at least 0"),
        ({"beta_end": 1.5}, "beta_end=1.5: expected a number in \\(0, 1\\)"),
        ({"trained_betas": [0.1, 2.0]}, "expected null or a list of numbers in \\(0, 1\\)"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas has 2 entries: expected num_train_timest"),
        ({"set_alpha_to_one": 1}, "set_alpha_to_one=1: expected true or false"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else None,
)
def test_refuses_by_name(fault, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.from_config(SD15 | fault)


def test_refuses_all_faults_at_once():
    with pytest.raises(ValueError, match="scheduler config") as refusal:
        NoiseSchedule.from_config(
            SD15 | {"thresholding": True, "shift": 3.0, "prediction_type": "score", "beta_start": 0}
        )
    for name in ("thresholding=True", "shift=3.0", "prediction_type='score'", "beta_start=0"):
        assert name in str(refusal.value)


def test_the_constructor_refuses_too():
    with pytest.raises(ValueError, match="prediction_type='score': expected 'epsilon' or"):
        NoiseSchedule(prediction_type="score")


def test_refuses_shapes_that_do_not_fit():
    schedule = NoiseSchedule()
    x0, noise = draws(2)
    with pytest.raises(ValueError, match="x0 and noise must agree in shape, got"):
        schedule.add_noise(x0, noise[:1], TIMESTEPS)
    with pytest.raises(ValueError, match=r"timesteps must be \(\) or \(4,\) for x0 of shape"):
        schedule.add_noise(x0, noise, TIMESTEPS[:3])
    with pytest.raises(ValueError, match="output and latents must agree in shape"):
        schedule.predictions(x0, noise[..., :2], TIMESTEPS)
