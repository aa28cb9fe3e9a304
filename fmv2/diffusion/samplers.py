"""DDIM, DPM-Solver++(2M), Euler and Euler-ancestral, each a function that fills a table.

Computed on the host in float64 from (schedule, number of steps), run by `fmv2.diffusion.sampling`.
Timesteps, noise levels and trajectories equal those of diffusers 0.42's schedulers. The state is
variance preserving for DDIM and DPM-Solver++, and keeps the signal at unit scale for Euler, where
its noise level is σ/α.
"""

import numpy as np
from jaxtyping import Float

from fmv2.diffusion.sampling import Column, Sampler, StepTable
from fmv2.diffusion.schedule import NoiseSchedule, PredictionType, TimestepSpacing


def ddim(schedule: NoiseSchedule, num_steps: int, *, eta: float = 0.0, start: int = 0) -> Sampler:
    """Denoising diffusion implicit models.

    Args:
      schedule: its `timestep_spacing` defaults to "leading".
      num_steps: of the full run.
      eta: 0 is deterministic, 1 is ancestral (DDPM) sampling.
      start: first steps left out, to sample from noised latents; strength = 1 - start / num_steps.
    Raises:
      ValueError: num_steps, start or eta out of range, or noise prediction at a step of zero SNR.
    Source: Song et al. 2020, eqs. 12 and 16; equals DDIMScheduler.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    _check_start(start, num_steps)
    timesteps = _timesteps(schedule, num_steps, "leading").round().astype(int)[start:]
    # diffusers steps by the whole ratio whatever the spacing, so under "linspace" and "trailing"
    # a step need not land exactly where the next one starts.
    previous = timesteps - schedule.num_train_timesteps // num_steps

    cumprod = schedule.alphas_cumprod.astype(np.float64)
    a = cumprod[timesteps]
    a_previous = np.where(
        previous >= 0, cumprod[previous], 1.0 if schedule.set_alpha_to_one else cumprod[0]
    )
    if schedule.prediction_type == "epsilon" and a[0] == 0:
        raise ValueError(
            f"timestep {timesteps[0]} has zero SNR, where noise prediction leaves x0 undefined: "
            "use a v_prediction model, or set rescale_betas_zero_snr to False"
        )
    variance = eta**2 * (1 - a_previous) / (1 - a) * (1 - a / a_previous)
    # The weight of ε, which is (x - sqrt(a) x̂0) / sqrt(1 - a).
    direction = np.sqrt((1 - a_previous - variance) / (1 - a))
    return _sampler(
        schedule.prediction_type,
        timesteps,
        alpha=np.sqrt(a),
        sigma=np.sqrt(1 - a),
        latents=direction,
        x0=np.sqrt(a_previous) - direction * np.sqrt(a),
        noise=np.sqrt(variance),
        init_noise_sigma=None if start else 1.0,
    )


def dpm_solver_pp_2m(schedule: NoiseSchedule, num_steps: int, *, start: int = 0) -> Sampler:
    """DPM-Solver++(2M), midpoint form; with `use_karras_sigmas`, "DPM++ 2M Karras".

    Args:
      schedule: its `timestep_spacing` defaults to "linspace".
      num_steps: of the full run.
      start: as in `ddim`.
    Raises:
      ValueError: num_steps or start out of range.
    Source: Lu et al. 2022b, algorithm 2; equals DPMSolverMultistepScheduler.
    """
    _check_start(start, num_steps)
    if schedule.use_karras_sigmas:
        levels = _karras(schedule.sigmas[-1], schedule.sigmas[0], num_steps)
        timesteps = _sigma_to_timestep(schedule, levels)
        if schedule.beta_schedule != "squaredcos_cap_v2":
            timesteps = timesteps.round()
        timesteps = timesteps.astype(int)
    else:
        # One point more than steps: the last one is where the run ends.
        timesteps = _timesteps(schedule, num_steps, "linspace", points=num_steps + 1).round()
        levels = _sigmas_at(schedule, timesteps)
    levels = np.append(levels, _final_sigma(schedule))[start:]

    # λ = log(α/σ) = -log(level), so e^-h = after/here for h = λ(after) - λ(here).
    here, after = levels[:-1], levels[1:]
    alpha = 1 / np.sqrt(1 + levels**2)
    x0 = alpha[1:] * (1 - after / here)

    # The second-order term, where there is a previous estimate: h / 2 h⁻ of the first-order weight.
    first_order_final = (
        schedule.final_sigmas_type == "zero"
        or schedule.euler_at_final
        or (schedule.lower_order_final and num_steps < 15)
    )
    second = np.arange(1, len(here) - first_order_final)
    correction = np.zeros_like(x0)
    correction[second] = (
        0.5
        * np.log(here[second] / after[second])
        / np.log(here[second - 1] / here[second])
        * x0[second]
    )
    return _sampler(
        schedule.prediction_type,
        timesteps[start:],
        alpha=alpha[:-1],
        sigma=(levels * alpha)[:-1],
        latents=(levels * alpha)[1:] / (levels * alpha)[:-1],
        x0=x0 + correction,
        previous_x0=-correction,
        init_noise_sigma=None if start else 1.0,
    )


def euler(schedule: NoiseSchedule, num_steps: int, *, start: int = 0) -> Sampler:
    """Euler's method on the probability-flow ODE, with Karras sigmas when the schedule says so.

    Args:
      schedule: its `timestep_spacing` defaults to "linspace".
      num_steps: of the full run.
      start: as in `ddim`.
    Raises:
      ValueError: num_steps or start out of range.
    Source: Karras et al. 2022, algorithm 1 of first order; equals EulerDiscreteScheduler.
    """
    _check_start(start, num_steps)
    timesteps = _timesteps(schedule, num_steps, "linspace").astype(np.float32)
    levels = _sigmas_at(schedule, timesteps)
    if schedule.use_karras_sigmas:
        levels = _karras(levels[0], levels[-1], num_steps)
        timesteps = _sigma_to_timestep(schedule, levels)
    levels = np.append(levels, _final_sigma(schedule))
    return _euler(schedule, timesteps, levels, target=levels[1:], start=start)


def euler_ancestral(schedule: NoiseSchedule, num_steps: int, *, start: int = 0) -> Sampler:
    """Euler steps that go below the next noise level and add fresh noise back up to it.

    Args:
      schedule: its `timestep_spacing` defaults to "linspace"; Karras and final sigmas do not apply.
      num_steps: of the full run.
      start: as in `ddim`.
    Raises:
      ValueError: num_steps or start out of range.
    Source: Crowson's k-diffusion; equals EulerAncestralDiscreteScheduler.
    """
    _check_start(start, num_steps)
    timesteps = _timesteps(schedule, num_steps, "linspace").astype(np.float32)
    levels = np.append(_sigmas_at(schedule, timesteps), 0.0)
    here, after = levels[:-1], levels[1:]
    noise = after * np.sqrt(1 - (after / here) ** 2)
    return _euler(schedule, timesteps, levels, target=after**2 / here, noise=noise, start=start)


def _euler(
    schedule: NoiseSchedule,
    timesteps: Column,
    levels: Float[np.ndarray, "steps+1"],
    *,
    target: Column,
    noise: Column | None = None,
    start: int,
) -> Sampler:
    """Steps straight from each level to the target level along (x - x̂0) / level."""
    latents = (target / levels[:-1])[start:]
    # diffusers counts the unit-variance signal in the first state under "leading" spacing alone.
    leading = schedule.timestep_spacing == "leading"
    return _sampler(
        schedule.prediction_type,
        timesteps[start:],
        alpha=np.ones_like(latents),
        sigma=levels[start:-1],
        latents=latents,
        x0=1 - latents,
        noise=None if noise is None else noise[start:],
        init_noise_sigma=None if start else float(np.hypot(levels[0], 1 if leading else 0)),
    )


def _sampler(
    prediction_type: PredictionType,
    timesteps: Column,
    *,
    alpha: Column,
    sigma: Column,
    latents: Column,
    x0: Column,
    previous_x0: Column | None = None,
    noise: Column | None = None,
    init_noise_sigma: float | None,
) -> Sampler:
    """Completes a table with what follows from the state alpha x0 + sigma ε before each step."""
    none = np.zeros(len(timesteps))
    variance = alpha**2 + sigma**2
    match prediction_type:
        case "epsilon":
            x0_from_latents, x0_from_output = 1 / alpha, -sigma / alpha
        case "sample":
            x0_from_latents, x0_from_output = none, none + 1
        case "v_prediction":
            x0_from_latents, x0_from_output = alpha / variance, -sigma / np.sqrt(variance)
    table = StepTable(
        timestep=timesteps,
        input_scale=1 / np.sqrt(variance),
        x0_from_latents=x0_from_latents,
        x0_from_output=x0_from_output,
        latents=latents,
        x0=x0,
        previous_x0=none if previous_x0 is None else previous_x0,
        noise=none if noise is None else noise,
        alpha=alpha,
        sigma=sigma,
    )
    return Sampler(
        table=StepTable(*(column.astype(np.float32) for column in table)),
        init_noise_sigma=init_noise_sigma,
        stochastic=bool(table.noise.any()),
    )


def _check_start(start: int, num_steps: int) -> None:
    if num_steps < 1 or not 0 <= start < num_steps:
        raise ValueError(
            f"num_steps must be at least 1 and start in [0, num_steps), got {num_steps} and {start}"
        )


def _timesteps(
    schedule: NoiseSchedule, num_steps: int, default: TimestepSpacing, points: int | None = None
) -> Column:
    """Training steps, descending: the first `num_steps` of `points` (Lin et al. 2023, table 2).

    "trailing" ends above 0 by itself and needs no point beyond its steps.
    """
    train, points = schedule.num_train_timesteps, points or num_steps
    if points > train:
        raise ValueError(
            f"num_steps must be at most {train - (points - num_steps)} for a schedule of "
            f"{train} training steps, got {num_steps}"
        )
    match schedule.timestep_spacing or default:
        case "linspace":
            timesteps = np.linspace(0, train - 1, points)[::-1][:num_steps]
        case "leading":
            multiples = np.arange(points)[::-1][:num_steps]
            timesteps = multiples * (train // points) + schedule.steps_offset
        case "trailing":
            timesteps = np.round(train - np.arange(num_steps) * (train / num_steps)) - 1
    if timesteps[0] >= train:
        raise ValueError(
            f"steps_offset={schedule.steps_offset} puts the first of {num_steps} steps at timestep "
            f"{timesteps[0]}, beyond the last one, {train - 1}: take fewer steps"
        )
    return timesteps.astype(np.float64)


def _sigmas_at(schedule: NoiseSchedule, timesteps: Column) -> Column:
    """σ/α at training steps, linear between them."""
    return np.interp(timesteps, np.arange(schedule.num_train_timesteps), schedule.sigmas)


def _sigma_to_timestep(schedule: NoiseSchedule, levels: Column) -> Column:
    """The training steps of these σ/α, linear in log σ/α between them."""
    steps = np.arange(schedule.num_train_timesteps)
    return np.interp(np.log(levels), np.log(schedule.sigmas), steps)


def _karras(first: float, last: float, num_steps: int, rho: float = 7.0) -> Column:
    """Noise levels evenly spaced in their rho-th root (Karras et al. 2022, eq. 5)."""
    return np.linspace(float(first) ** (1 / rho), float(last) ** (1 / rho), num_steps) ** rho


def _final_sigma(schedule: NoiseSchedule) -> float:
    return 0.0 if schedule.final_sigmas_type == "zero" else float(schedule.sigmas[0])
