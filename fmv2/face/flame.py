"""A head in FLAME's schema: identity, expression and pose coefficients to vertices.

Paper: Li et al. 2017 (FLAME), with SMPL's linear blend skinning (Loper et al. 2015). Every function
takes one head; `jax.vmap` makes it many.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HeadModel:
    """The arrays of a FLAME file, in its names and layout. FLAME: v 5023, f 9976, j 5, k 400.

    The five joints are the root, the neck, the jaw, the left and the right eye. Lengths in metres;
    the face looks along +z, +y is up, +x is the head's own left.
    """

    v_template: Float[Array, "v 3"]
    shapedirs: Float[Array, "v 3 k"]
    """Identity directions, then from `expression_offset` on those of expression."""
    posedirs: Float[Array, "v 3 9*(j-1)"]
    J_regressor: Float[Array, "j v"]
    weights: Float[Array, "v j"]
    faces: Int[Array, "f 3"]
    parents: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    """The joint each joint hangs on, itself earlier in the list; the root's is -1."""
    expression_offset: int = dataclasses.field(metadata=_STATIC)
    """FLAME: 300."""


def skin(
    model: HeadModel,
    shape: Float[Array, "s"],
    expression: Float[Array, "e"],
    pose: Float[Array, "j 3"],
) -> Float[Array, "v 3"]:
    """The posed head's vertices.

    Args:
      model: the head.
      shape: identity, in standard deviations; fewer than the model has means zeros for the rest.
      expression: likewise.
      pose: each joint's rotation against its parent, axis times angle in radians.
    Raises:
      ValueError: more coefficients than the model has, or not one rotation per joint.
    """
    _check_lengths(model, shape, expression, pose)
    first = model.expression_offset
    identity_dirs = model.shapedirs[..., : len(shape)]
    expression_dirs = model.shapedirs[..., first : first + len(expression)]
    shaped = model.v_template + _dot(identity_dirs, shape) + _dot(expression_dirs, expression)
    joints = _dot(model.J_regressor, shaped)
    rotations = rotation_matrices(pose)
    corrections = _dot(model.posedirs, (rotations[1:] - jnp.eye(3)[None]).ravel())

    turned, moved = [rotations[0]], [joints[0]]
    for joint, parent in list(enumerate(model.parents))[1:]:
        turned.append(_dot(turned[parent], rotations[joint]))
        moved.append(moved[parent] + _dot(turned[parent], joints[joint] - joints[parent]))
    # A joint turns what hangs on it about its own rest place, then sets it at its posed place.
    turns = jnp.stack(turned)
    shifts = jnp.stack(moved) - jnp.einsum("jab,jb->ja", turns, joints, precision="highest")
    vertex_turns = jnp.einsum("vj,jab->vab", model.weights, turns, precision="highest")
    turned_vertices = jnp.einsum(
        "vab,vb->va", vertex_turns, shaped + corrections, precision="highest"
    )
    return turned_vertices + _dot(model.weights, shifts)


def rotation_matrices(rotations: Float[Array, "j 3"]) -> Float[Array, "j 3 3"]:
    """Rodrigues' formula: axis times angle in radians to matrices, smooth at zero too."""
    squared = jnp.sum(rotations**2, axis=-1)[:, None, None]
    # Near zero sin(a)/a and (1 - cos a)/a² are 0/0: there by their series, accurate to 1e-13.
    small = squared < 1e-3
    angle = jnp.sqrt(jnp.where(small, 1.0, squared))
    sine = jnp.where(small, 1 - squared / 6 + squared**2 / 120, jnp.sin(angle) / angle)
    half = jnp.sin(angle / 2) / angle  # 1 - cos would cancel
    cosine = jnp.where(small, 0.5 - squared / 24 + squared**2 / 720, 2 * half**2)
    x, y, z = rotations.T
    zero = jnp.zeros_like(x)
    cross = jnp.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(-1, 3, 3)
    return jnp.eye(3)[None] + sine * cross + cosine * _dot(cross, cross)


def triangles_within(faces: Int[Array, "f 3"], vertices: Int[Array, "n"]) -> Bool[Array, "f"]:
    """Which triangles have all three corners among `vertices`, a region of FLAME's masks."""
    return jnp.isin(faces, vertices).all(axis=-1)


def _dot(a: Array, b: Array) -> Array:
    # The default on TPU rounds to bfloat16, a millimetre on a head.
    return jnp.matmul(a, b, precision="highest")


def _check_lengths(model: HeadModel, shape: Array, expression: Array, pose: Array) -> None:
    identities = model.expression_offset
    expressions = model.shapedirs.shape[-1] - identities
    faults = []
    if len(shape) > identities:
        faults.append(f"shape has {len(shape)} coefficients, the model only {identities}")
    if len(expression) > expressions:
        faults.append(f"expression has {len(expression)} coefficients, the model {expressions}")
    if pose.shape != (len(model.parents), 3):
        faults.append(
            f"pose must be {(len(model.parents), 3)}, one rotation per joint, got {pose.shape}"
        )
    if faults:
        raise ValueError("; ".join(faults) + "; many heads go through jax.vmap")
