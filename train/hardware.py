"""What chips can do, by the kind that JAX calls them. Vendor's specifications."""

from typing import NamedTuple


class Chip(NamedTuple):
    """One device."""

    name: str
    flops: float
    """Per second, dense bfloat16."""
    bandwidth: float
    """Bytes of its memory per second."""
    memory: float
    """Bytes."""
    clock: float | None = None
    """Hz at which the compiler's `estimated_cycles` pass, of a TPU."""
    cores: int = 1
    """That one JAX device has, each with units of its own."""


_GIB = 2**30

# The device kinds that JAX reports, most telling part first.
_CHIPS = {
    "TPU v4": Chip("v4", 275e12, 1228e9, 32 * _GIB, 1.05e9),
    "TPU v5 lite": Chip("v5e", 197e12, 819e9, 16 * _GIB, 1.5e9),
    "TPU v5e": Chip("v5e", 197e12, 819e9, 16 * _GIB, 1.5e9),
    "TPU v5p": Chip("v5p", 459e12, 2765e9, 95 * _GIB, 1.75e9, cores=2),
    "TPU v5": Chip("v5p", 459e12, 2765e9, 95 * _GIB, 1.75e9, cores=2),
    "TPU v6": Chip("v6e", 918e12, 1640e9, 32 * _GIB, 1.75e9),
    "H200": Chip("H200", 989e12, 4800e9, 141e9),
    "H100": Chip("H100", 989e12, 3350e9, 80e9),
    "A100": Chip("A100", 312e12, 2039e9, 80e9),
    "L4": Chip("L4", 121e12, 300e9, 24e9),
}


def chip(device_kind: str) -> Chip | None:
    """The chip that a `jax.Device.device_kind` names; None for one that is not known here."""
    return next((chip for name, chip in _CHIPS.items() if name in device_kind), None)
