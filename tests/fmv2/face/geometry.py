"""Small geometry that several tests draw: a ball as a head, and a random head model."""

import numpy as np

from fmv2.face.flame import HeadModel

PARENTS = (-1, 0, 1, 1, 1)


def ball(rows, columns, radii=(0.6, 0.8, 0.7)):
    """An ellipsoid of `rows` rings between two poles; triangles wound so that normals go out."""
    polar = np.linspace(0, np.pi, rows + 2)[1:-1, None]
    turn = np.linspace(0, 2 * np.pi, columns, endpoint=False)[None]
    rings = np.stack(
        [np.sin(polar) * np.sin(turn), np.cos(polar) + 0 * turn, np.sin(polar) * np.cos(turn)], -1
    )
    vertices = np.concatenate([rings.reshape(-1, 3), [[0, 1, 0], [0, -1, 0]]]) * radii
    ring = np.arange(rows)[:, None] * columns
    here, following = np.arange(columns)[None], (np.arange(columns)[None] + 1) % columns
    a, b = (ring + here)[:-1].ravel(), (ring + following)[:-1].ravel()
    top, bottom, last = rows * columns, rows * columns + 1, (rows - 1) * columns
    faces = np.concatenate(
        [
            np.stack([a, a + columns, b], -1),
            np.stack([b, a + columns, b + columns], -1),
            np.stack([np.full(columns, top), here[0], following[0]], -1),
            np.stack([np.full(columns, bottom), last + following[0], last + here[0]], -1),
        ]
    )
    return vertices.astype(np.float32), faces.astype(np.int32)


def random_head(seed, vertices=40, identities=6, expressions=4):
    """A head model with no structure at all, as float32 arrays."""
    rng = np.random.default_rng(seed)
    joints = len(PARENTS)
    regressor, weights = rng.random((joints, vertices)), rng.random((vertices, joints))
    arrays = {
        "v_template": rng.normal(size=(vertices, 3)),
        "shapedirs": 0.3 * rng.normal(size=(vertices, 3, identities + expressions)),
        "posedirs": 0.1 * rng.normal(size=(vertices, 3, 9 * (joints - 1))),
        "J_regressor": regressor / regressor.sum(axis=1, keepdims=True),
        "weights": weights / weights.sum(axis=1, keepdims=True),
    }
    return HeadModel(
        **{name: array.astype(np.float32) for name, array in arrays.items()},
        faces=rng.integers(0, vertices, (30, 3)).astype(np.int32),
        parents=PARENTS,
        expression_offset=identities,
    )
