"""A posed head to the pictures made of it: shading, normals, depth, labels and landmarks."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fmv2.face.camera import crop_to_image, project, to_pixels
from fmv2.face.rasterizer import interpolate, rasterize
from fmv2.face.shading import faces_viewer, shade, vertex_normals

BACKGROUND = 0
"""The canonical label of pixels that see nothing."""

_LEFT_EYE, _RIGHT_EYE = slice(36, 42), slice(42, 48)
_NOSE_TIP, _LEFT_MOUTH, _RIGHT_MOUTH = 30, 48, 54


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """What of a head is drawn and how its parts are called; the vertices come apart."""

    faces: Int[Array, "f 3"]
    """The triangles drawn: the whole model's, or those of a region."""
    labels: Int[Array, "f"]
    """Canonical label of each triangle drawn."""
    landmark_corners: Int[Array, "68 3"]
    """The vertices of the triangle that each landmark lies on, drawn or not."""
    landmark_barycentrics: Float[Array, "68 3"]
    """Where on it. The order is iBUG's 68 points."""


class Rendering(NamedTuple):
    """The pictures of one head. Landmarks are x, y in pixels, pixel centres at whole numbers."""

    shading: Float[Array, "h w 3"]
    """RGB in [0, 1]: light on shape over black. Surfaces that face away are black too."""
    normals: Float[Array, "h w 3"]
    """In the world, interpolated and not renormalised; zero where nothing is seen."""
    depth: Float[Array, "h w"]
    """Normalised z, smaller is nearer; infinite where nothing is seen."""
    labels: Int[Array, "h w"]
    landmarks: Float[Array, "68 2"]
    five_points: Float[Array, "5 2"]
    """In ArcFace's order: the eye on the picture's left, the other, nose tip, mouth corners."""


def render(
    vertices: Float[Array, "v 3"],
    surface: Surface,
    camera: Float[Array, "3"],
    light: Float[Array, "9 3"],
    *,
    size: tuple[int, int],
    image_from_crop: Float[Array, "2 3"] | None = None,
) -> Rendering:
    """One head under a camera and a light; `jax.vmap` makes it many.

    Shading, normals, depth and landmarks are differentiable in vertices, camera and light. The
    silhouette is not: which triangle a pixel sees counts as given.

    Args:
      vertices: posed, in the world, as `fmv2.face.flame.skin` gives them.
      surface: what is drawn.
      camera: scale and translation, see `fmv2.face.camera.project`.
      light: spherical harmonics, see `fmv2.face.shading.shade`.
      size: height and width of the pictures in pixels.
      image_from_crop: where the camera's crop lies in the picture, see `crop_to_image`; None where
        the crop is the picture.
    Source: Feng et al. 2021 (DECA), the shape rendering.
    """
    projected = project(vertices, camera)
    if image_from_crop is not None:
        projected = crop_to_image(projected, image_from_crop, size)
    faces = surface.faces
    fragments = rasterize(projected, faces, size)
    seen = fragments.triangle >= 0

    normals = interpolate(fragments, faces, vertex_normals(vertices, faces))
    facing = interpolate(fragments, faces, vertex_normals(projected, faces))
    lit = (seen & faces_viewer(facing))[..., None]
    corners = projected[surface.landmark_corners]
    landmarks = jnp.sum(corners * surface.landmark_barycentrics[..., None], axis=1)
    landmarks = to_pixels(landmarks, size)
    return Rendering(
        shading=jnp.where(lit, shade(normals, light), 0.0),
        normals=normals,
        depth=fragments.depth,
        labels=jnp.where(seen, surface.labels[fragments.triangle], BACKGROUND),
        landmarks=landmarks,
        five_points=five_points(landmarks),
    )


def five_points(landmarks: Float[Array, "68 2"]) -> Float[Array, "5 2"]:
    """ArcFace's five of iBUG's 68: an eye is the mean of its outline."""
    return jnp.stack(
        [
            landmarks[_LEFT_EYE].mean(axis=0),
            landmarks[_RIGHT_EYE].mean(axis=0),
            landmarks[_NOSE_TIP],
            landmarks[_LEFT_MOUTH],
            landmarks[_RIGHT_MOUTH],
        ]
    )
