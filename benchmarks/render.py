"""How many heads per second the renderer draws: coefficients to shading, labels and landmarks.

    python benchmarks/render.py

Prints JSON. The head has FLAME's size, 5,023 vertices, 9,976 triangles and 400 directions, on an
ellipsoid that fills about 38 % of the picture; every head has its own coefficients, pose and light.
Compilation is not counted; the median of the repeats is.
"""

import dataclasses
import json
import os
import platform
import statistics
import time
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from fmv2.face.flame import HeadModel, skin
from fmv2.face.render import Surface, render

VERTICES, FACES = 5023, 9976
RINGS, COLUMNS = 54, 93


@dataclasses.dataclass(frozen=True)
class Settings:
    """Render heads of FLAME's size and print the rates."""

    sizes: tuple[int, ...] = (512, 224, 128)
    """Sides of the pictures in pixels."""
    batches: tuple[int, ...] = (1, 8)
    """Heads per call."""
    repeats: int = 10


def head_model() -> HeadModel:
    """An ellipsoid with FLAME's counts: rings, a pole on top, and an open neck, partly closed."""
    polar = np.linspace(0, np.pi, RINGS + 2)[1:-1, None]
    turn = np.linspace(0, 2 * np.pi, COLUMNS, endpoint=False)[None]
    unit = [np.sin(polar) * np.sin(turn), np.cos(polar) + 0 * turn, np.sin(polar) * np.cos(turn)]
    vertices = np.concatenate([np.stack(unit, -1).reshape(-1, 3), [[0, 1, 0]]]) * [0.6, 0.8, 0.7]
    grid = np.arange(RINGS * COLUMNS).reshape(RINGS, COLUMNS)
    following = np.roll(grid, -1, axis=1)
    corners = [grid[:-1], grid[1:], following[:-1], following[:-1], grid[1:], following[1:]]
    sides = np.stack([corner.ravel() for corner in corners], -1).reshape(-1, 3)
    top = np.stack([np.full(COLUMNS, VERTICES - 1), grid[0], following[0]], -1)
    neck = np.stack([np.full(COLUMNS, grid[-1, 0]), following[-1], grid[-1]], -1)[1:]
    faces = np.concatenate([sides, top, neck])[:FACES]
    assert len(vertices) == VERTICES
    assert len(faces) == FACES

    rng = np.random.default_rng(0)
    weights, regressor = rng.random((VERTICES, 5)), rng.random((5, VERTICES))
    weights[:, 0] += 20  # nearly rigid
    return HeadModel(
        v_template=jnp.asarray(vertices, jnp.float32),
        shapedirs=jnp.asarray(1e-4 * rng.normal(size=(VERTICES, 3, 400)), jnp.float32),
        posedirs=jnp.asarray(1e-4 * rng.normal(size=(VERTICES, 3, 36)), jnp.float32),
        J_regressor=jnp.asarray(regressor / regressor.sum(1, keepdims=True), jnp.float32),
        weights=jnp.asarray(weights / weights.sum(1, keepdims=True), jnp.float32),
        faces=jnp.asarray(faces, jnp.int32),
        parents=(-1, 0, 1, 1, 1),
        expression_offset=300,
    )


def measure(model: HeadModel, size: int, batch: int, repeats: int) -> dict[str, float]:
    """Heads per second at one size of picture and of batch."""
    surface = Surface(
        faces=model.faces,
        labels=jnp.ones(FACES, jnp.int32),
        landmark_corners=model.faces[:68],
        landmark_barycentrics=jnp.full((68, 3), 1 / 3),
    )

    @jax.jit
    @jax.vmap
    def draw(shape, expression, pose, camera, light):
        vertices = skin(model, shape, expression, pose)
        return render(vertices, surface, camera, light, size=(size, size))

    rng = np.random.default_rng(0)
    camera = np.tile(np.float32([1, 0, 0]), (batch, 1))
    given = [rng.normal(size=(batch, n)).astype(np.float32) for n in (100, 50)]
    given += [np.float32(0.2 * rng.normal(size=(batch, 5, 3))), camera]
    given += [np.float32(0.3 * rng.normal(size=(batch, 9, 3)) + 2 * np.eye(9, 1))]
    given = jax.device_put(given)

    start = time.perf_counter()
    drawn = jax.block_until_ready(draw(*given))
    first = time.perf_counter() - start
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(draw(*given))
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    return {
        "size": size,
        "batch": batch,
        "seconds_per_call": round(median, 4),
        "renders_per_second": round(batch / median, 1),
        "first_call_seconds": round(first, 1),
        "covered": round(float((drawn.labels > 0).mean()), 3),
    }


def main(settings: Settings) -> None:
    model = head_model()
    load = os.getloadavg()[0]
    rates = [
        measure(model, size, batch, settings.repeats)
        for size in settings.sizes
        for batch in settings.batches
    ]
    print(
        json.dumps(
            {
                "program": "benchmarks/render.py",
                "settings": dataclasses.asdict(settings),
                "versions": {name: version(name) for name in ("jax", "jaxlib", "numpy")},
                "python": platform.python_version(),
                "device": jax.devices()[0].device_kind,
                "cores": os.cpu_count(),
                "load_average_at_start": round(load, 2),
                "rates": rates,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
