"""Textures: the waves that they are made of are sums of sines in directions of the seed's."""

import jax.numpy as jnp
import numpy as np
import pytest

from data.procedural import painter


def waves(point, frequency, seed, count=5):
    """The same in float64, with NumPy's sine."""
    hashed = np.uint32(seed) + np.arange(count * 8, dtype=np.uint32) * np.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        hashed = (hashed ^ (hashed >> shift)) * np.uint32(factor)
    uniform = ((hashed ^ (hashed >> 16)) >> 8).reshape(count, 8) / 2**24
    directions, phases = (uniform[:, : point.shape[-1]] - 0.5) * 4, 2 * np.pi * uniform[:, 7]
    return np.sin(frequency * point @ directions.T + phases).sum(axis=-1) * (2 / count) ** 0.5


@pytest.mark.parametrize(("axes", "frequency"), [(2, 3.1), (3, 90.0), (3, 2600.0)])
def test_waves_are_sums_of_sines(axes, frequency):
    points = np.random.default_rng(axes).uniform(-0.12, 0.12, (64, 64, axes)).astype(np.float32)
    made = painter.waves(jnp.asarray(points), frequency, jnp.uint32(7))
    # Hundreds of radians in float32 are sure to some ten thousandths.
    np.testing.assert_allclose(made, waves(points.astype(float), frequency, 7), atol=1e-3)


def test_one_sine_goes_all_the_way_round():
    angles = np.linspace(-20, 20, 40001, dtype=np.float32)[None]
    np.testing.assert_allclose(painter._sine(jnp.asarray(angles)), np.sin(angles), atol=5e-6)
