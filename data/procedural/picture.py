"""Factors to pictures: the rendered head, its shading map, its labels and its landmarks."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from data.procedural import growth, painter
from data.procedural.factors import Factors
from data.procedural.head import make_head
from data.procedural.scene import MATERIAL, MATERIALS, make_scene, place
from fmv2.face.align import crop_face
from fmv2.face.camera import project
from fmv2.face.labels import LABELS, NUMBER
from fmv2.face.rasterizer import interpolate, rasterize
from fmv2.face.render import render
from fmv2.face.shading import ALBEDO, shade, vertex_normals

SUPERSAMPLING = 2
"""Samples of a pixel along each side, averaged."""

_BEARD = len(LABELS)
"""What a pixel of beard is until labels and beard are told apart: to a parser it is skin."""

_LABEL_OF_PART = {
    "skin": "skin", "ear_left": "l_ear", "ear_right": "r_ear", "eye_left": "l_eye",
    "eye_right": "r_eye", "lid_upper_left": "skin", "lid_upper_right": "skin",
    "lid_lower_left": "skin", "lid_lower_right": "skin", "mouth": "mouth", "teeth": "mouth",
    "hair": "hair", "bangs": "hair", "bun": "hair", "hat": "hat", "brim": "hat", "rims": "eye_g",
    "lenses": "eye_g", "earrings": "ear_r", "necklace": "neck_l", "cloth": "cloth",
}  # fmt: skip
_CHIN = -0.1135


class Picture(NamedTuple):
    """One picture and what is exactly known of it."""

    image: UInt8[Array, "s s 3"]
    face: UInt8[Array, "f f 3"]
    """Aligned by the five landmarks, see `fmv2.face.align`."""
    shading: UInt8[Array, "s s 3"]
    labels: UInt8[Array, "s s"]
    """Canonical, see `fmv2.face.labels`."""
    beard: Bool[Array, "s s"]
    """What no label tells."""
    landmarks: Float[Array, "5 2"]
    """x, y in pixels, in ArcFace's order."""


@functools.partial(jax.jit, static_argnames=("size", "face_size"))
def draw(factors: Factors, *, size: int, face_size: int) -> Picture:
    """Pictures of a batch of factors, one after another.

    Args:
      factors: with a leading axis.
      size: pixels of the picture's side.
      face_size: of the aligned face's.
    """
    return jax.lax.map(functools.partial(_draw, size=size, face_size=face_size), factors)


def _draw(factors: Factors, size: int, face_size: int) -> Picture:
    scene, head = make_scene(), make_head()
    vertices = place(scene, factors)
    rendering = render(
        vertices[: scene.head_vertices],
        head.surface,
        factors.camera,
        factors.light,
        size=(size, size),
    )
    fine = SUPERSAMPLING * size
    light, regions = _photograph(vertices, factors, fine)
    shown = painter.displayed(light)
    small = shown.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3).mean(axis=(1, 3))
    # Landmarks are in the picture's pixels; the face is cut from the finer one.
    landmarks = rendering.five_points
    finer = (landmarks + 0.5) * SUPERSAMPLING - 0.5
    face = crop_face(shown, finer, face_size)
    regions = _majority(regions)
    return Picture(
        image=_bytes(small),
        face=_bytes(face),
        shading=_bytes(rendering.shading),
        labels=jnp.where(regions == _BEARD, NUMBER["skin"], regions).astype(jnp.uint8),
        beard=regions == _BEARD,
        landmarks=landmarks,
    )


def _photograph(vertices, factors: Factors, size: int):
    """Light and region of each sample."""
    scene = make_scene()
    faces = scene.model.faces
    fragments = rasterize(project(vertices, factors.camera), faces, (size, size))
    seen = fragments.triangle >= 0
    attributes = jnp.concatenate([vertex_normals(vertices, faces), scene.rest], axis=-1)
    normals, rest = jnp.split(interpolate(fragments, faces, attributes), 2, axis=-1)
    # Cloth, hair and brims are seen from both sides.
    normals = normals * jnp.where(normals[..., 2:] < 0, -1.0, 1.0)
    normals = normals / jnp.maximum(jnp.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)

    material = jnp.where(seen, scene.material[fragments.triangle], -1)
    albedo, shine, covered = painter.paint(material, rest, factors)
    irradiance = shade(normals, factors.light) / ALBEDO
    light = painter.linear(albedo) * irradiance + _highlight(normals, shine, factors)
    wall = painter.linear(painter.backdrop(size, factors))
    ambient = jnp.clip(factors.light[0] * 0.282095 * 1.25, 0.25, 1.1)
    light = jnp.where(seen[..., None], light, wall * ambient[None, None])
    return light, _regions(material, rest, covered, factors)


def _highlight(normals, shine, factors: Factors):
    """Blinn and Phong's, of the light's main direction."""
    toward = factors.light[1:4].mean(axis=1)
    toward = toward / jnp.maximum(jnp.linalg.norm(toward), 1e-6)
    half = toward + jnp.array([0.0, 0.0, 1.0])
    half = half / jnp.maximum(jnp.linalg.norm(half), 1e-6)
    facing = jnp.maximum((normals * half[None, None]).sum(axis=-1), 0)
    power = jnp.where(shine > 0.3, 60.0, 14.0)
    strength = shine * facing**power
    return strength[..., None] * jnp.clip(factors.light[0] * 0.282095, 0, 1)[None, None]


def _regions(material, rest, covered, factors: Factors):
    table = jnp.array([NUMBER[_LABEL_OF_PART[name]] for name in MATERIALS])
    region = jnp.where(material >= 0, table[material], NUMBER["background"])
    on_skin = material == MATERIAL["skin"]
    y, z = rest[..., 1], rest[..., 2]
    under_chin = (y < _CHIN) | ((y < -0.085) & (z < -0.02))
    region = jnp.where(on_skin & under_chin, NUMBER["neck"], region)
    for name, part in zip(painter.MARKS, covered, strict=True):
        # Half covered is covered, a stubble's half included.
        region = jnp.where(on_skin & (part > 0.45), NUMBER.get(name, _BEARD), region)
    shut = painter.eyelids_closed(factors)
    for side, is_shut in zip(("left", "right"), shut, strict=True):
        lids = [MATERIAL[f"lid_{which}_{side}"] for which in ("upper", "lower")]
        near = jnp.abs(rest[..., 1] - growth.EYE[1]) < 0.0120
        lid = jnp.isin(material, jnp.array(lids)) & near & is_shut
        region = jnp.where(lid, NUMBER[f"{side[0]}_eye"], region)
    return region


def _majority(samples):
    """Of each pixel's samples the one that most of them agree with."""
    n = SUPERSAMPLING
    size = len(samples) // n
    parts = samples.reshape(size, n, size, n).transpose(1, 3, 0, 2).reshape(n * n, size, size)
    votes = (parts[:, None] == parts[None]).sum(axis=1)
    best = jnp.argmax(votes, axis=0)
    return jnp.take_along_axis(parts, best[None], axis=0)[0]


def _bytes(x):
    return jnp.clip(jnp.round(x * 255), 0, 255).astype(jnp.uint8)
