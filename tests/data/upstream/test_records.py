"""Files to a record: pictures, masks, landmarks and tokens moved alike."""

import io
import json
import zlib

import cv2
import numpy as np
import pytest
import torch
from etils import epath
from PIL import Image

from data.codec import decode
from data.upstream import layout, records
from data.upstream.layout import BadItem
from fmv2.tokens import Tokens
from tests.data.upstream.layouts import (
    ROOTS,
    box,
    edit,
    noise,
    write_embedding,
    write_layout,
    write_picture,
    write_tokenizer,
)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return Tokens.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def make(tokens, tmp_path):
    """Makes item 0 of a layout in tmp_path, which is 48 pixels wide and 40 high."""
    write_layout(tmp_path, items=1)

    def make(side=40, **changes):
        edit(tmp_path, 0, lambda item: item.update(changes))
        content = json.loads((tmp_path / "list.json").read_text())[0]
        roots = records.Roots(*(epath.Path(tmp_path / root) for root in ROOTS))
        return records.make(layout.parse(0, content), roots, tokens, side)

    return make


def test_a_fit_picture_is_kept_byte_for_byte(make, tmp_path):
    record, mended = make()
    assert not mended
    assert record.key == "p0/0.jpg"
    assert record.image == (tmp_path / "images/p0/0.jpg").read_bytes()
    assert record.face == (tmp_path / "faces/f/0.jpg").read_bytes()
    np.testing.assert_array_equal(record.face_id, np.ones(512, np.float32))
    assert record.face_id.dtype == np.float32
    attribute = record.captions["attribute"]
    assert attribute.text == "a red hat"
    np.testing.assert_array_equal(attribute.masks, [box((48, 40), 0, 8) > 127])
    assert np.flatnonzero(attribute.tokens[0]).tolist() == [2, 3, 4, 5, 6, 7]
    emotion = record.captions["emotion"]
    np.testing.assert_array_equal(emotion.masks, [box((48, 40), 4, 20) > 127])


def test_a_large_picture_shrinks_with_all_that_lies_over_it(make, tmp_path):
    points = [[1.5, 3.5], [10, 20], [0, 0], [47, 39], [20, 8]]
    whole = np.zeros((40, 48, 3), np.uint8)
    whole[:20, :, 0], whole[:, 16:] = 240, 120
    write_picture(tmp_path / "images/p0/0.jpg", whole)
    record, _ = make(side=20, landmarks=points)
    wanted = cv2.resize(whole, (24, 20), interpolation=cv2.INTER_AREA)
    assert np.abs(decode(record.image).astype(int) - wanted).mean() < 4
    assert decode(record.shading).shape == (20, 24, 3)
    np.testing.assert_array_equal(record.captions["emotion"].masks, [box((24, 20), 2, 10) > 127])
    np.testing.assert_allclose(record.landmarks, (np.float32(points) + 0.5) / 2 - 0.5)


def test_a_picture_is_turned_upright_and_written_anew(make, tmp_path):
    path = tmp_path / "images/p0/0.jpg"
    rgb = np.zeros((48, 40, 3), np.uint8)
    rgb[:, :20] = 250  # lies on its side in the file: white is above once it is turned
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb).save(path, exif=exif)
    record, _ = make()
    upright = decode(record.image)
    assert upright.shape == (40, 48, 3)
    assert upright[:18].min() > 200
    assert upright[22:].max() < 50


@pytest.mark.parametrize("kind", ["grey", "palette", "alpha", "cmyk", "progressive"])
def test_other_pictures_become_baseline_rgb(make, tmp_path, kind):
    path = tmp_path / "images/p0/0.jpg"
    mode = {"grey": "L", "palette": "P", "alpha": "RGBA", "cmyk": "CMYK"}.get(kind, "RGB")
    form = "PNG" if kind in ("palette", "alpha") else "JPEG"
    Image.fromarray(np.full((40, 48, 3), 102, np.uint8)).convert(mode).save(
        path, form, **({"progressive": True} if kind == "progressive" else {})
    )
    record, _ = make()
    assert record.image != path.read_bytes()
    with Image.open(io.BytesIO(record.image)) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert not image.info.get("progressive")
    assert np.abs(decode(record.image).astype(int) - 102).max() < 4


def test_a_face_that_is_no_square_is_padded_and_counted(make, tmp_path):
    write_picture(tmp_path / "faces/f/0.jpg", np.full((24, 16, 3), 200, np.uint8))
    record, mended = make()
    face = decode(record.face)
    assert face.shape == (24, 24, 3)
    assert face[:, :3].max() < 30
    assert face[:, 6:18].min() > 170
    assert mended == {records.FACES_PADDED: 1}


def test_tokens_outside_the_caption_are_dropped_and_counted(make):
    mask = "0_hat.png"
    listed = [
        {"mask": mask, "token_indices": [0, 1, 7, 8, 76, 77, -1, 500]},  # 8 is the end token's
        {"mask": mask, "token_indices": [0, 80]},
        {"mask": mask, "token_indices": []},
    ]
    record, mended = make(atrribute_parsing_masks=listed)
    assert np.argwhere(record.captions["attribute"].tokens).tolist() == [[0, 1], [0, 7]]
    assert mended == {records.TOKENS_OUTSIDE: 8, records.MASKS_WITHOUT_TOKENS: 2}


def test_a_truncated_caption_ends_at_its_76th_position(make):
    listed = [{"mask": "0_hat.png", "token_indices": [74, 75, 76, 77]}]
    record, mended = make(face_attribute_caption="a " * 100, atrribute_parsing_masks=listed)
    assert np.flatnonzero(record.captions["attribute"].tokens[0]).tolist() == [74, 75]
    assert mended == {records.TOKENS_OUTSIDE: 2}


def test_overlapping_masks_stay_and_of_too_many_the_largest_are_kept(make, tmp_path):
    sides = [10, 3, 12, 2, 14, 16, 18, 20, 22, 24]
    for side in sides:
        write_picture(tmp_path / f"masks/Attribute/{side}.png", box((48, 40), 0, side))
    listed = [{"mask": f"{side}.png", "token_indices": [1]} for side in sides]
    record, mended = make(atrribute_parsing_masks=listed)
    areas = record.captions["attribute"].masks.sum((1, 2)).tolist()
    assert areas == [side**2 for side in sides if side > 3]
    assert mended == {records.MASKS_TOO_MANY: 2}


def test_a_mask_may_be_of_another_size_but_not_of_another_shape(make, tmp_path):
    path = tmp_path / "masks/Attribute/0_hat.png"
    write_picture(path, box((24, 20), 4, 10))
    record, _ = make()
    mask = record.captions["attribute"].masks[0]
    assert mask.shape == (40, 48)
    assert (mask[10:26, 10:26].all(), mask.sum() < 21**2) == (True, True)
    write_picture(path, box((48, 44), 4, 10))
    with pytest.raises(BadItem, match="48×44 pixels and its image 48×40: expected the same"):
        make()


def test_a_mask_that_vanishes_as_it_shrinks_is_dropped_and_counted(make, tmp_path):
    write_picture(tmp_path / "masks/Attribute/0_hat.png", box((48, 40), 3, 1))
    assert cv2.imread(str(tmp_path / "masks/Attribute/0_hat.png")).max() > 127
    record, mended = make(side=8)
    assert record.captions["attribute"].masks.shape == (0, 8, 10)
    assert mended == {records.MASKS_TOO_SMALL: 1}


def test_one_caption_for_both_kinds_counts_once(make, tmp_path):
    write_picture(tmp_path / "masks/m.png", box((48, 40), 0, 8))
    listed = [{"mask": "m.png", "token_indices": [1, 99]}]
    changes = dict.fromkeys(("face_attribute_caption", "face_emotion_caption"))
    edit(tmp_path, 0, lambda item: [item.pop(name) for name in changes])
    edit(tmp_path, 0, lambda item: item.pop("atrribute_parsing_masks"))
    edit(tmp_path, 0, lambda item: item.pop("emotion_parsing_masks"))
    record, mended = make(face_caption=["a hat"], parsing_masks=listed)
    assert mended == {records.TOKENS_OUTSIDE: 1}
    assert record.captions["emotion"] is record.captions["attribute"]
    assert len(record.captions["emotion"].masks) == 1


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])


def vast(path, side=50_000):
    """A PNG's beginning alone, of 50,000 by 50,000 pixels."""
    head = b"IHDR" + side.to_bytes(4) * 2 + b"\x08\x02\x00\x00\x00"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + (13).to_bytes(4)
        + head
        + zlib.crc32(head).to_bytes(4)
        + (99).to_bytes(4)
        + b"IDAT"
    )


FAULTS = [
    ("images/p0/0.jpg", cut, "is cut short or damaged"),
    (
        "images/p0/0.jpg",
        lambda path: path.write_bytes(b"not a picture"),
        "is no picture that can be read",
    ),
    ("images/p0/0.jpg", lambda path: path.unlink(), "is missing"),
    ("images/p0/0.jpg", vast, "is too large: expected at most 67108864 pixels"),
    ("images/p0/0.jpg", lambda path: vast(path, 9_000), "has 9000×9000 pixels: expected at most"),
    (
        "images/p0/0.jpg",
        lambda path: Image.fromarray(np.zeros((40, 48), np.uint16)).save(path, "PNG"),
        "more than 8 bits per channel",
    ),
    ("faces/f/0.jpg", cut, "is cut short or damaged"),
    ("shading/p0/0.jpg", lambda path: write_picture(path, noise(0, 30, 30, 3)), "30×30 pixels and"),
    ("masks/Emotion/0_mouth.png", cut, "is cut short or damaged"),
    (
        "masks/Emotion/0_mouth.png",
        lambda path: write_picture(path, np.full((40, 48), 127, np.uint8)),
        "is empty: expected white",
    ),
    ("masks/Emotion/0_mouth.png", lambda path: write_picture(path, box((40, 48), 0, 9)), "40×48"),
    ("face_ids/f/0.pt", lambda path: path.unlink(), "is missing"),
    ("face_ids/f/0.pt", lambda path: path.write_bytes(b"x"), "is not a tensor that torch saved"),
    ("face_ids/f/0.pt", lambda path: write_embedding(path, torch.ones(1, 511)), "holds (1, 511)"),
    ("face_ids/f/0.pt", lambda path: write_embedding(path, {"a": 1}), "holds dict"),
    ("face_ids/f/0.pt", lambda path: write_embedding(path, io.BytesIO), "not a tensor that torch"),
    (
        "face_ids/f/0.pt",
        lambda path: write_embedding(path, torch.full((1, 512), torch.nan)),
        "not finite",
    ),
    ("face_ids/f/0.pt", lambda path: write_embedding(path, torch.zeros(1, 512)), "is all zeros"),
]


@pytest.mark.parametrize(("name", "damage", "problem"), FAULTS)
def test_a_bad_file_is_told_by_its_name(make, tmp_path, name, damage, problem):
    damage(tmp_path / name)
    with pytest.raises(BadItem) as caught:
        make()
    assert len(caught.value.problems) == 1
    assert str(tmp_path / name) in str(caught.value)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_bad_files_of_an_item_at_once(make, tmp_path):
    for name, damage, _ in (FAULTS[0], FAULTS[6], FAULTS[9], FAULTS[16]):
        damage(tmp_path / name)
    with pytest.raises(BadItem) as caught:
        make()
    assert len(caught.value.problems) == 3  # without its image, a mask cannot be judged


def test_half_floats_and_flat_tensors_are_embeddings(make, tmp_path):
    write_embedding(tmp_path / "face_ids/f/0.pt", torch.full((512,), 0.5, dtype=torch.float16))
    np.testing.assert_array_equal(make()[0].face_id, np.full(512, 0.5, np.float32))
