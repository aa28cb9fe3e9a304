"""Pictures of every kind come out as they are meant to be seen, or are refused in a line."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from fmv2.errors import UserError
from fmv2.pictures import read_mask, read_picture, square
from tests.fmv2.model import picture

RGB = picture(1, 30, 40)
GREY = RGB[..., :1].repeat(3, axis=-1)


def saved(tmp_path, image: Image.Image, ending: str = "png", **options):
    path = tmp_path / f"picture.{ending}"
    image.save(path, **options)
    return path


def test_grey_is_grey(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY[..., 0]))
    np.testing.assert_array_equal(read_picture(path), GREY)


def test_sixteen_bits_are_brought_to_eight(tmp_path):
    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), GREY[..., 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_picture(path), GREY)
    cv2.imwrite(str(path), RGB[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_picture(path), RGB)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_places_are_white(tmp_path, mode):
    image = Image.fromarray(RGB).convert(mode)
    alpha = np.full(RGB.shape[:2], 255, np.uint8)
    alpha[:10] = 0
    image.putalpha(Image.fromarray(alpha))
    found = read_picture(saved(tmp_path, image))
    assert (found[:10] == 255).all()
    np.testing.assert_array_equal(found[10:], np.asarray(image.convert("RGB"))[10:])


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    found = read_picture(saved(tmp_path, image, transparency=0))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[1, 1].tolist() == [0, 0, 255]


@pytest.mark.parametrize("from_file", [True, False])
def test_exif_turns(tmp_path, from_file):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    path = saved(tmp_path, Image.fromarray(RGB), exif=exif.tobytes())
    source = path if from_file else Image.open(path)
    np.testing.assert_array_equal(read_picture(source), np.rot90(RGB, -1))


def test_arrays():
    unit = RGB.astype(np.float32) / 255
    for same in (RGB, unit, RGB.astype(np.uint16) * 257, np.dstack([unit, np.ones((30, 40))])):
        np.testing.assert_array_equal(read_picture(same), RGB)
    np.testing.assert_array_equal(read_picture(GREY[..., 0]), GREY)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.int64),
        np.full((4, 4, 3), 2.0),
        np.full((4, 4, 3), np.nan),
        np.zeros(4, np.uint8),
    ],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(UserError, match="expected"):
        read_picture(array)


def test_what_is_no_picture_is_refused(tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    whole = io.BytesIO()
    Image.fromarray(RGB).save(whole, "PNG")
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.getvalue()[:-300])
    for path, why in (
        (tmp_path / "absent.png", "no such file"),
        (tmp_path, "not a file"),
        (text, "not a picture"),
        (cut, "cut short"),
    ):
        with pytest.raises(UserError, match=why) as refused:
            read_picture(path)
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)


def test_the_square_is_in_the_middle():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (square(wide, 10) == 200).all()
    assert (square(wide, 4) == 200).all()
    assert (square(wide, 64) == 200).all()


def test_masks():
    half = np.zeros((4, 4), bool)
    half[:2] = True
    np.testing.assert_array_equal(read_mask(half), half.astype(np.float32))
    np.testing.assert_array_equal(read_mask(np.uint8(255 * half)), half.astype(np.float32))
