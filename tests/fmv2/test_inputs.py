"""A batch's bytes as the nets want them, CLIP's against transformers' own processor."""

import jax
import numpy as np
from transformers import CLIPImageProcessorPil

from fmv2.inputs import clip_input, image_input, keep, resize, shading_input


def pixels(side):
    return np.random.randint(0, 256, (2, side, side, 3), np.uint8)


def test_clips_pixels_are_those_of_its_processor():
    faces = pixels(16)
    processor = CLIPImageProcessorPil(do_resize=False, do_center_crop=False)
    expected = processor(list(faces), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(clip_input(faces, 16), expected, atol=1e-5)


def test_ranges():
    ends = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    np.testing.assert_array_equal(np.ravel(image_input(ends)), [-1, 1])
    np.testing.assert_array_equal(np.ravel(shading_input(ends)), [0, 1])


def test_shrinking_loses_no_pixel():
    """A mean of sixteen stays the mean; without antialiasing it would be of four at most."""
    faces = pixels(16).astype(np.float32)
    small = jax.jit(resize, static_argnums=1)(faces, 4)
    assert small.shape == (2, 4, 4, 3)
    for place in np.ndindex(16, 16):
        moved = faces.copy()
        moved[(slice(None), *place)] += 1
        assert np.any(np.array(jax.jit(resize, static_argnums=1)(moved, 4)) != small), place
    np.testing.assert_allclose(np.mean(small), faces.mean(), rtol=0.02)
    assert resize(faces, 16) is faces


def test_what_is_dropped_is_zero():
    values = np.random.standard_normal((3, 2, 5)).astype(np.float32)
    kept = keep(values, np.array([False, True, False]))
    np.testing.assert_array_equal(kept, values * np.array([1, 0, 1])[:, None, None])
