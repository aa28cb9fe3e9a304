"""The noise schedule of a diffusion model, read from a diffusers scheduler_config.json.

x_t = α_t x0 + σ_t ε with α_t² = ᾱ_t and σ_t² = 1 - ᾱ_t (Ho et al. 2020; variance preserving). The
tables equal the float32 tables of diffusers 0.42's schedulers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, NamedTuple, Self, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]
TimestepSpacing = Literal["leading", "trailing", "linspace"]
FinalSigmas = Literal["zero", "sigma_min"]

# Fields that would change the mathematics, each with the values under which they do not.
_UNSUPPORTED_UNLESS: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver++", "deis"),  # diffusers reads DEIS's as DPM-Solver++ too
    "clip_sample": (False,),
    "interpolation_type": ("linear",),
    "lambda_min_clipped": (-float("inf"),),
    "sigma_max": (None,),
    "sigma_min": (None,),
    "solver_order": (2,),
    "solver_type": ("midpoint", "bh1", "bh2", "logrho"),  # diffusers reads all as midpoint
    "thresholding": (False,),
    "timestep_type": ("discrete",),
    "use_beta_sigmas": (False, None),
    "use_dynamic_shifting": (False,),
    "use_exponential_sigmas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}

# Fields without effect on these samplers: they tune a feature refused above, or another solver.
_WITHOUT_EFFECT = frozenset(
    {
        "clip_sample_range",
        "disable_corrector",
        "dynamic_thresholding_ratio",
        "flow_shift",
        "predict_x0",
        "sample_max_value",
        "shift_terminal",
        "skip_prk_steps",
        "solver_p",
        "time_shift_type",
    }
)


class Predictions(NamedTuple):
    """One prediction in its three forms, under the names of `prediction_type`."""

    epsilon: Float[Array, "*shape"]
    sample: Float[Array, "*shape"]
    v_prediction: Float[Array, "*shape"]


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """Betas, what the net predicts, and how samplers place their steps.

    Every field is diffusers' field of that name with diffusers' default. Hashable: fit to be a
    static argument.

    Raises:
      ValueError: fields that cannot work, all of them named.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: BetaSchedule = "linear"
    trained_betas: tuple[float, ...] | None = None  # replaces the three fields above
    rescale_betas_zero_snr: bool = False  # the last step becomes pure noise (Lin et al. 2023)
    prediction_type: PredictionType = "epsilon"
    timestep_spacing: TimestepSpacing | None = None  # None: each sampler's own default
    steps_offset: int = 0  # training steps, added to "leading" spacing
    set_alpha_to_one: bool = True  # DDIM ends at ᾱ = 1; else at ᾱ of training step 0
    use_karras_sigmas: bool = False  # DPM-Solver++ and Euler
    final_sigmas_type: FinalSigmas = "zero"  # DPM-Solver++ and Euler
    lower_order_final: bool = True  # DPM-Solver++: last step of first order when under 15 steps
    euler_at_final: bool = False  # DPM-Solver++: last step of first order always

    def __post_init__(self):
        _refuse(_faults(vars(self)))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Reads the config of any scheduler that diffusers deems exchangeable: PNDM, DDIM, Euler, …

        As in diffusers' `from_config`, absent fields take the defaults above, not those of the
        class that wrote the config. One exception: an absent `clip_sample` is False, as in
        diffusers' Stable Diffusion pipelines, since VAE latents are not confined to [-1, 1].

        Args:
          config: the parsed scheduler_config.json, or a diffusers scheduler's `.config`.
        Raises:
          ValueError: names every field that is unknown, out of range, or asks for mathematics
            that is not supported.
        Source: equals `DDIMScheduler.from_config` and its kin, diffusers 0.42.
        """
        defaults = {field.name: field.default for field in fields(cls)}
        # A live scheduler's config lists the fields that its file did not give.
        absent = config.get("_use_default_values", ())
        given = {k: v for k, v in config.items() if not k.startswith("_") and k not in absent}
        known = {k: v for k, v in given.items() if k in defaults and v is not None}
        if isinstance(known.get("trained_betas"), list | np.ndarray):
            known["trained_betas"] = tuple(map(float, known["trained_betas"]))

        faults = []
        for name, value in given.items():
            if name in _UNSUPPORTED_UNLESS:
                accepted = _UNSUPPORTED_UNLESS[name]
                if value not in accepted:
                    faults.append(
                        f"{name}={value!r} is not supported: set it to {_one_of(accepted)}"
                    )
            elif name not in defaults and name not in _WITHOUT_EFFECT:
                faults.append(
                    f"{name}={value!r} is not a known field: remove it if it has no effect"
                )
        _refuse(faults + _faults(defaults | known))
        return cls(**known)

    @cached_property
    def alphas_cumprod(self) -> Float[np.ndarray, "t"]:
        """ᾱ of each training step, float32; the last is 0 under `rescale_betas_zero_snr`."""
        betas = self._betas()
        if self.rescale_betas_zero_snr:
            betas = _zero_terminal_snr(betas)
        return _alphas_cumprod(betas)

    @cached_property
    def sigmas(self) -> Float[np.ndarray, "t"]:
        """σ_t / α_t of each training step, float32: the noise level at unit signal scale.

        At zero terminal SNR it would be infinite; as in diffusers, ᾱ = 2⁻²⁴ stands in there.
        """
        alphas_cumprod = self.alphas_cumprod
        if self.rescale_betas_zero_snr:
            alphas_cumprod = np.append(alphas_cumprod[:-1], np.float32(2**-24))
        return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)

    def add_noise(
        self,
        x0: Float[Array, "*shape"],
        noise: Float[Array, "*shape"],
        timesteps: Int[Array, "..."],
    ) -> Float[Array, "*shape"]:
        """x_t = α_t x0 + σ_t ε.

        Args:
          x0: VAE latents, scaled (unit variance); any shape.
          noise: standard normal, as x0.
          timesteps: training steps in [0, num_train_timesteps): `(b,)`, or `()` for all alike.
        Raises:
          ValueError: x0 and noise differ in shape, or timesteps do not lead x0's shape.
        Source: Ho et al. 2020, eq. 4; equals DDPMScheduler.add_noise.
        """
        alpha, sigma = self._alpha_sigma(timesteps, x0=x0, noise=noise)
        return alpha * x0 + sigma * noise

    def velocity(
        self,
        x0: Float[Array, "*shape"],
        noise: Float[Array, "*shape"],
        timesteps: Int[Array, "..."],
    ) -> Float[Array, "*shape"]:
        """v = α_t ε - σ_t x0; arguments and errors as `add_noise`.

        Source: Salimans & Ho 2022, appendix D; equals DDPMScheduler.get_velocity.
        """
        alpha, sigma = self._alpha_sigma(timesteps, x0=x0, noise=noise)
        return alpha * noise - sigma * x0

    def target(
        self,
        x0: Float[Array, "*shape"],
        noise: Float[Array, "*shape"],
        timesteps: Int[Array, "..."],
    ) -> Float[Array, "*shape"]:
        """What the net learns to predict; arguments and errors as `add_noise`."""
        forms = Predictions(
            epsilon=noise, sample=x0, v_prediction=self.velocity(x0, noise, timesteps)
        )
        return getattr(forms, self.prediction_type)

    def predictions(
        self,
        output: Float[Array, "*shape"],
        latents: Float[Array, "*shape"],
        timesteps: Int[Array, "..."],
        prediction_type: PredictionType | None = None,
    ) -> Predictions:
        """Reads one prediction as noise, as clean latents and as velocity.

        Args:
          output: the net's output at `latents`.
          latents: x_t.
          timesteps: as in `add_noise`. At zero SNR noise says nothing of x0: "epsilon" gives no
            finite x0 there.
          prediction_type: what `output` is; the schedule's own when None.
        Raises:
          ValueError: output and latents differ in shape, or timesteps do not lead their shape.
        Source: Salimans & Ho 2022, appendix D.
        """
        alpha, sigma = self._alpha_sigma(timesteps, output=output, latents=latents)
        match prediction_type or self.prediction_type:
            case "epsilon":
                epsilon, x0 = output, (latents - sigma * output) / alpha
                return Predictions(epsilon, x0, alpha * epsilon - sigma * x0)
            case "sample":
                epsilon, x0 = (latents - alpha * output) / sigma, output
                return Predictions(epsilon, x0, alpha * epsilon - sigma * x0)
            case "v_prediction":
                epsilon, x0 = alpha * output + sigma * latents, alpha * latents - sigma * output
                return Predictions(epsilon, x0, output)

    def snr(self, timesteps: Int[Array, "*b"]) -> Float[Array, "*b"]:
        """Signal-to-noise ratio α_t² / σ_t² (of powers, not decibels) at training steps.

        Source: Hang et al. 2023 (min-SNR weighting); equals diffusers' compute_snr.
        """
        alphas_cumprod = jnp.asarray(self.alphas_cumprod)[timesteps]
        return alphas_cumprod / (1 - alphas_cumprod)

    def _betas(self) -> Float[np.ndarray, "t"]:
        n = self.num_train_timesteps
        if self.trained_betas is not None:
            return np.asarray(self.trained_betas, np.float32)
        match self.beta_schedule:
            case "linear":
                return _linspace(self.beta_start, self.beta_end, n)
            case "scaled_linear":
                return _linspace(self.beta_start**0.5, self.beta_end**0.5, n) ** 2
            case "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, eq. 17
                alphas_cumprod = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
                betas = 1 - alphas_cumprod[1:] / alphas_cumprod[:-1]
                return np.minimum(betas, 0.999).astype(np.float32)

    def _alpha_sigma(self, timesteps: Int[Array, "..."], **latents: Float[Array, "*shape"]):
        """α_t and σ_t with trailing axes of 1, to multiply the named latents."""
        (first, x), (second, y) = latents.items()
        if x.shape != y.shape:
            raise ValueError(
                f"{first} and {second} must agree in shape, got {x.shape} and {y.shape}"
            )
        if timesteps.shape != x.shape[: timesteps.ndim]:
            raise ValueError(
                f"timesteps must be () or {x.shape[:1]} for {first} of shape {x.shape}, "
                f"got {timesteps.shape}"
            )
        alphas_cumprod = jnp.asarray(self.alphas_cumprod)[timesteps]
        alphas_cumprod = alphas_cumprod.reshape(timesteps.shape + (1,) * (x.ndim - timesteps.ndim))
        return jnp.sqrt(alphas_cumprod), jnp.sqrt(1 - alphas_cumprod)


def _linspace(start: float, stop: float, n: int) -> Float[np.ndarray, "t"]:
    """torch.linspace in float32, bit for bit: steps of float32, counted from the nearer end."""
    first, last = np.float32(start), np.float32(stop)
    step = np.float64((last - first) / np.float32(max(n - 1, 1)))
    i = np.arange(n)
    return np.where(i < n // 2, first + step * i, last - step * (n - 1 - i)).astype(np.float32)


def _alphas_cumprod(betas: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
    # torch accumulates in double and stores float32.
    return np.cumprod(1 - betas, dtype=np.float64).astype(np.float32)


def _zero_terminal_snr(betas: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
    """Shifts and scales sqrt(ᾱ) to start as before and end at 0 (Lin et al. 2023, algorithm 1)."""
    root = np.sqrt(_alphas_cumprod(betas))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    alphas_cumprod = root**2
    return 1 - np.append(alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1])


def _one_of(choices: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, choices))


def _choice(choices: tuple[Any, ...]) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in choices, _one_of(choices)


def _integer(least: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: type(value) is int and value >= least, f"an integer of at least {least}"


def _is_beta(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < 1


_FLAG = (lambda value: isinstance(value, bool), "true or false")
_BETA = (_is_beta, "a number in (0, 1)")

_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_train_timesteps": _integer(1),
    "beta_start": _BETA,
    "beta_end": _BETA,
    "beta_schedule": _choice(get_args(BetaSchedule)),
    "trained_betas": (
        lambda value: value is None or (isinstance(value, tuple) and all(map(_is_beta, value))),
        "null or a list of numbers in (0, 1)",
    ),
    "rescale_betas_zero_snr": _FLAG,
    "prediction_type": _choice(get_args(PredictionType)),
    "timestep_spacing": _choice((None, *get_args(TimestepSpacing))),
    "steps_offset": _integer(0),
    "set_alpha_to_one": _FLAG,
    "use_karras_sigmas": _FLAG,
    "final_sigmas_type": _choice(get_args(FinalSigmas)),
    "lower_order_final": _FLAG,
    "euler_at_final": _FLAG,
}


def _faults(values: Mapping[str, Any]) -> list[str]:
    faults = [
        f"{name}={values[name]!r}: expected {expected}"
        for name, (holds, expected) in _EXPECTED.items()
        if not holds(values[name])
    ]
    betas = values["trained_betas"]
    if not faults and betas is not None and len(betas) != values["num_train_timesteps"]:
        faults.append(
            f"trained_betas has {len(betas)} entries: "
            f"expected num_train_timesteps={values['num_train_timesteps']}"
        )
    return faults


def _refuse(faults: list[str]) -> None:
    if faults:
        raise ValueError(f"scheduler config: {'; '.join(faults)}")
