"""The world's records hold what their pictures show, whoever draws them and in which company."""

import numpy as np
import pytest

from data.codec import decode
from data.procedural import chance
from data.procedural.factors import IDENTITY
from data.procedural.head import make_head
from data.procedural.scene import make_scene, place
from data.procedural.world import World
from data.schema import CAPTION_KINDS
from fmv2.face.regions import REGIONS, region_mask
from fmv2.face.render import render
from fmv2.tokens import EMBEDDED, Tokens

SIZE = 64


def world(**changes) -> World:
    settings = {"seed": 1, "count": 40, "size": SIZE, "images_per_identity": 4}
    return World(**settings | changes, tokenizer=EMBEDDED)


@pytest.fixture(scope="module")
def records():
    return list(world().records(range(12)))


@pytest.mark.parametrize("count", [1, 4, 5, 41, 2000, 1_000_000])
def test_shards_hold_every_item_once_and_nobody_is_in_two_splits(count):
    source = world(count=count)
    shards = source.shards()
    items = [shard.items for shard in shards]
    assert sum(map(len, items)) == count
    assert [part.start for part in items[1:]] == [part.stop for part in items[:-1]]
    assert len({shard.file for shard in shards}) == len(shards)
    people = {
        split: {item // 4 for shard in shards if shard.split == split for item in shard.items}
        for split in ("train", "validation")
    }
    assert not people["train"] & people["validation"]
    if count > 4:
        held_out = len(people["validation"]) / (len(people["train"]) + len(people["validation"]))
        assert held_out == pytest.approx(0.05, abs=0.5 if count < 41 else 0.06)


def test_records_do_not_depend_on_their_company(records):
    again = list(world().records(range(5, 9)))
    for one, two in zip(records[5:9], again, strict=True):
        for name in ("key", "image", "face", "shading"):
            assert getattr(one, name) == getattr(two, name)
        assert one.captions["attribute"].text == two.captions["attribute"].text
        assert one.optional["labels"] == two.optional["labels"]


def test_faces_may_be_those_of_another_picture(records):
    other = list(world(faces="other").records(range(3, 8)))
    shown = [record.face for record in records]
    assert [one.face for one in other] == [shown[n] for n in (0, 5, 6, 7, 4)]
    assert [one.image for one in other] == [record.image for record in records[3:8]]
    assert world(faces="other").fingerprint() != world().fingerprint()


def test_people_are_recognised_by_their_code(records):
    codes = np.stack([record.face_id for record in records])
    same = np.arange(12)[:, None] // 4 == np.arange(12)[None] // 4
    assert ((codes @ codes.T > 0.999) == same).all()
    assert [record.factors["identity"] for record in records] == [i // 4 for i in range(12)]


def test_every_phrase_has_its_pixels_and_its_tokens(records):
    tokens = Tokens.load(EMBEDDED)
    told = 0
    for record in records:
        labels = decode(record.optional["labels"], channels=1)
        unions = {region_mask(name, labels).tobytes() for name, parts in REGIONS.items() if parts}
        for kind in CAPTION_KINDS:
            caption = record.captions[kind]
            ids = tokens.ids(caption.text)
            assert caption.text
            assert caption.masks.shape == (len(caption.tokens), SIZE, SIZE)
            for mask, token_mask in zip(caption.masks, caption.tokens, strict=True):
                told += 1
                assert mask.any()
                assert tokens.words(ids[token_mask]) in caption.text.lower()
                beard = record.factors["beard"] != "none"
                assert mask.tobytes() in unions or beard
    assert told > 24


def test_hidden_things_are_not_spoken_of():
    labels = np.zeros((SIZE, SIZE), np.uint8)
    from data.procedural.world import Regions

    nothing = Regions(labels, np.zeros((SIZE, SIZE), bool))
    classes = chance.named(chance.factors(0, 0, 0).classes) | {
        "earrings": "both",
        "hat": "none",
        "beard": "full",
    }
    seen = nothing.seen(classes)
    assert "earrings" not in seen
    assert "beard" not in seen
    assert seen["hat"] == "none"
    assert seen["background"] == classes["background"]


def test_the_coefficients_render_the_shading_map(records):
    import jax.numpy as jnp

    factors = chance.factors(1, 3, 0)
    given = records[3].optional
    np.testing.assert_array_equal(given["coefficients/shape"][: len(IDENTITY)], factors.identity)
    scene, head = make_scene(), make_head()
    drawn = render(
        place(scene, factors)[: scene.head_vertices],
        head.surface,
        jnp.asarray(given["coefficients/camera"]),
        jnp.asarray(given["coefficients/light"]),
        size=(SIZE, SIZE),
    )
    shading = decode(records[3].shading)
    difference = np.abs(np.round(np.asarray(drawn.shading) * 255) - shading)
    assert (difference <= 1).mean() > 0.999
    assert shading.max() > 50
    np.testing.assert_allclose(drawn.five_points, records[3].landmarks, atol=1e-3)
