"""A head and what it wears as one mesh: which triangle is of what, and where all vertices lie."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from data.procedural.factors import CLASSES, EXPRESSION, IDENTITY, Factors
from data.procedural.head import JAW_TURN, PARTS, SHAPES, make_head
from data.procedural.wardrobe import make_wardrobe
from fmv2.face.flame import HeadModel, skin

MATERIALS = (*PARTS, *make_wardrobe())
"""What a triangle is made of: a part of the head, or an item by its name in the wardrobe."""

MATERIAL = {name: number for number, name in enumerate(MATERIALS)}


class Scene(NamedTuple):
    """The mesh without a place: head first, then the items."""

    model: HeadModel
    """Skins head and items alike; its template is replaced by that of the classes worn, and its
    coefficients are IDENTITY and EXPRESSION alone."""
    items: tuple[tuple[int, Float[Array, "classes v 3"]], ...]
    """Of each item: the place in CLASSES of what chooses it, and where its vertices lie then."""
    material: Int[Array, " f"]
    """Of each triangle, a place in MATERIALS."""
    rest: Float[Array, "v 3"]
    """Texture coordinates: of the head its template, of an item its grain and 0."""
    head_vertices: int


@functools.cache
@jax.ensure_compile_time_eval()  # whoever asks first may be tracing
def make_scene() -> Scene:
    """The one scene of this world; everything in it is chosen by factors."""
    head, wardrobe = make_head(), make_wardrobe()
    anchors = np.concatenate([item.anchors for item in wardrobe.values()])
    faces, material = [np.asarray(head.model.faces)], [head.part_of_face]
    rest, first = [np.asarray(head.model.v_template)], len(head.model.v_template)
    items = []
    for name, item in wardrobe.items():
        faces.append(first + item.faces)
        material.append(np.full(len(item.faces), MATERIAL[name]))
        rest.append(np.pad(item.grain, ((0, 0), (0, 1))))
        items.append((list(CLASSES).index(item.attribute), jnp.asarray(item.places, jnp.float32)))
        first += len(item.anchors)

    def extended(x):
        return jnp.concatenate([x, x[anchors]])

    used = [*range(len(IDENTITY)), *range(SHAPES, SHAPES + len(EXPRESSION))]
    zero = jnp.zeros((len(head.model.J_regressor), len(anchors)))
    model = HeadModel(
        v_template=extended(head.model.v_template),
        shapedirs=extended(head.model.shapedirs[..., jnp.array(used)]),
        posedirs=extended(head.model.posedirs),
        J_regressor=jnp.concatenate([head.model.J_regressor, zero], axis=1),
        weights=extended(head.model.weights),
        faces=jnp.asarray(np.concatenate(faces), jnp.int32),
        parents=head.model.parents,
        expression_offset=len(IDENTITY),
    )
    return Scene(
        model,
        tuple(items),
        jnp.asarray(np.concatenate(material), jnp.int32),
        jnp.asarray(np.concatenate(rest), jnp.float32),
        len(head.model.v_template),
    )


def pose_of(factors: Factors) -> Float[Array, "5 3"]:
    """Each joint's rotation: the head turns as a whole, and the jaw as the mouth opens."""
    jaw = JAW_TURN * factors.expression[EXPRESSION.index("mouth_open")]
    pose = jnp.zeros((5, 3)).at[0].set(factors.rotation)
    return pose.at[2, 0].set(jaw)


def place(scene: Scene, factors: Factors) -> Float[Array, "v 3"]:
    """All vertices in the world, of one picture's factors."""
    worn = [places[factors.classes[chooser]] for chooser, places in scene.items]
    template = jnp.concatenate([scene.model.v_template[: scene.head_vertices], *worn])
    model = jax.tree.map(lambda x: x, scene.model)
    model = HeadModel(**{**vars(model), "v_template": template})
    return skin(model, factors.identity, factors.expression, pose_of(factors))
