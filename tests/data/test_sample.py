"""What chance hides is hidden everywhere, and a mirrored sample is mirrored everywhere."""

import numpy as np
import pytest

from data.codec import decode
from data.dataset import open_dataset
from data.sample import Dice, Drops, Sampler
from fmv2.face.labels import mirrored
from tests.data.faces import EVERYTHING, Words, write_dataset

PLAIN = Dice(
    kind=0,
    text_dropped=False,
    masks_dropped=False,
    id_dropped=False,
    face_dropped=False,
    flipped=False,
)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("d") / "set"
    write_dataset(folder, {"train": (1,)}, schema=EVERYTHING)
    return open_dataset(folder).source("train")[0]


def sampler(**changes) -> Sampler:
    settings = {"tokens": Words(), "size": 32, "face_size": 16, "grids": (8, 32)}
    settings |= {"mask_resize": "area", "extras": frozenset()}
    return Sampler(**settings | changes)


def test_a_record_of_the_right_size_passes_untouched(record):
    everything = frozenset({"labels", "coefficients", "latent_moments", "factors"})
    sample = sampler(extras=everything)(7, record, PLAIN)
    assert sample.index == 7
    for name in ("image", "face", "shading"):
        np.testing.assert_array_equal(getattr(sample, name), decode(record[name]))
    planes = decode(record["attribute_masks"], channels=1)
    for bit in range(8):
        np.testing.assert_array_equal(sample.masks[32][bit], (planes >> bit) & 1)
    np.testing.assert_array_equal(sample.landmarks, record["landmarks"])
    np.testing.assert_array_equal(sample.face_id, record["face_id"])
    np.testing.assert_array_equal(sample.input_ids, Words().ids("a red hat"))
    np.testing.assert_array_equal(sample.token_mask, record["attribute_tokens"])
    np.testing.assert_array_equal(sample.mask_valid, np.arange(8) < 2)
    np.testing.assert_array_equal(sample.labels, decode(record["labels"], channels=1))
    np.testing.assert_array_equal(sample.latent_moments, record["latent_moments"])
    np.testing.assert_array_equal(sample.coefficients["pose"], record["coefficients/pose"])
    assert sample.factors["identity"].dtype == np.int32
    assert sample.factors["smile"] == np.float32(record["factors/smile"])


def test_the_kind_of_caption_brings_its_own_masks(record):
    sample = sampler()(0, record, PLAIN._replace(kind=1))
    assert sample.caption_kind == 1
    np.testing.assert_array_equal(sample.input_ids, Words().ids("smiling woman"))
    np.testing.assert_array_equal(sample.mask_valid, np.arange(8) < 1)
    planes = decode(record["emotion_masks"], channels=1)
    np.testing.assert_array_equal(sample.masks[32][0], planes & 1)


def test_an_empty_caption_gives_way_to_the_other(record):
    sample = sampler()(0, {**record, "attribute_caption": ""}, PLAIN)
    assert sample.caption_kind == 1
    assert not sample.text_dropped


def test_masks_go_with_their_text(record):
    sample = sampler()(0, record, PLAIN._replace(text_dropped=True, masks_dropped=True))
    np.testing.assert_array_equal(sample.input_ids, Words().ids(""))
    assert sample.text_dropped
    assert not sample.mask_valid.any()
    assert not sample.token_mask.any()
    assert not any(mask.any() for mask in sample.masks.values())


def test_as_published_masks_stay_when_their_text_goes(record):
    plain, sample = (sampler()(0, record, PLAIN._replace(text_dropped=d)) for d in (False, True))
    np.testing.assert_array_equal(sample.input_ids, Words().ids(""))
    assert sample.text_dropped
    for name in ("token_mask", "mask_valid"):
        np.testing.assert_array_equal(getattr(sample, name), getattr(plain, name))
        assert getattr(sample, name).any()
    for grid, mask in sample.masks.items():
        np.testing.assert_array_equal(mask, plain.masks[grid])


@pytest.mark.parametrize(
    ("masks", "hidden"),
    [
        ("with_text", lambda throw: throw.text_dropped),
        ("never", lambda _: False),
        ("always", lambda _: True),
    ],
)
def test_whether_masks_go_with_their_text_is_a_setting(masks, hidden):
    drops = Drops(text=0.5, both=0.2, masks=masks)
    throws = [Dice.throw(0, n, attribute=0.5, drops=drops, flip=0.0) for n in range(50)]
    assert {t.text_dropped for t in throws} == {True, False}
    assert all(t.masks_dropped == hidden(t) for t in throws)


def test_a_phrase_whose_tokens_were_cut_off_has_no_mask(record):
    tokens = record["attribute_tokens"].copy()
    tokens[0] = False
    sample = sampler()(0, {**record, "attribute_tokens": tokens}, PLAIN)
    np.testing.assert_array_equal(sample.mask_valid, np.arange(8) == 1)
    assert not sample.masks[8][0].any()
    assert sample.masks[8][1].any()


def test_a_dropped_identity_is_zero(record):
    sample = sampler()(0, record, PLAIN._replace(id_dropped=True, face_dropped=True))
    assert sample.id_dropped
    assert sample.face_dropped
    assert not sample.face_id.any()


def test_everything_is_mirrored(record):
    record = {**record, "attribute_caption": "left eye with red right hat"}
    one = sampler(extras=frozenset({"labels"}))
    plain, flipped = one(0, record, PLAIN), one(0, record, PLAIN._replace(flipped=True))
    for name in ("image", "face", "shading"):
        np.testing.assert_array_equal(getattr(flipped, name), getattr(plain, name)[:, ::-1])
    for grid in (8, 32):
        np.testing.assert_array_equal(flipped.masks[grid], plain.masks[grid][..., ::-1])
    np.testing.assert_array_equal(flipped.labels, np.array(mirrored())[plain.labels[:, ::-1]])
    mirrored_points = [31, 0] + plain.landmarks * [-1, 1]
    np.testing.assert_allclose(flipped.landmarks[[1, 0, 2, 4, 3]], mirrored_points, rtol=1e-6)
    np.testing.assert_array_equal(flipped.input_ids, Words().ids("right eye with red left hat"))
    np.testing.assert_array_equal(flipped.token_mask, plain.token_mask)


def test_pictures_of_unequal_size_are_refused(record):
    small = {**record, "shading": record["face"]}
    with pytest.raises(ValueError, match=r"shading is \(16, 16\), but the image \(32, 32\)"):
        sampler()(0, small, PLAIN)


def test_dice_keep_their_odds():
    drops = Drops(text=0.1, id=0.2, both=0.3, face=0.25)
    throws = [Dice.throw(0, n, attribute=0.7, drops=drops, flip=0.4) for n in range(4000)]
    text = np.array([t.text_dropped for t in throws])
    identity = np.array([t.id_dropped for t in throws])
    face = np.array([t.face_dropped for t in throws])
    shares = {
        "attribute": np.mean([t.kind == 0 for t in throws]),
        "flip": np.mean([t.flipped for t in throws]),
        "text alone": np.mean(text & ~identity),
        "id alone": np.mean(identity & ~text),
        "both": np.mean(text & identity),
        "face, where the id is there": face[~identity].mean(),
    }
    # Four standard deviations of 4000 throws are at most 0.032.
    expected = [0.7, 0.4, 0.1, 0.2, 0.3, 0.25]
    np.testing.assert_allclose(list(shares.values()), expected, atol=0.032, err_msg=str(shares))
    assert face[identity].all()
    assert throws[5] == Dice.throw(0, 5, attribute=0.7, drops=drops, flip=0.4)
    assert throws != [Dice.throw(1, n, attribute=0.7, drops=drops, flip=0.4) for n in range(4000)]
