import numpy as np
import pytest

from data.upstream.index import Repeated
from data.upstream.layout import BadItem, Captioned, Mask, parse

BASE = {"image": "a/1.jpg", "face": ["f/1.jpg", "f/2.jpg"]}
MASKS = [{"mask": "m.png", "token_indices": [1, 2]}]


def test_the_newer_era_in_both_spellings():
    for spelling in ("atrribute_parsing_masks", "attribute_parsing_masks"):
        item = parse(
            3,
            {
                **BASE,
                "face_attribute_caption": "a hat",
                spelling: MASKS,
                "face_emotion_caption": "a smile",
                "emotion_parsing_masks": [{"mask": "x/m.png", "token_indices": []}],
            },
        )
        assert (item.key, item.image) == ("a/1.jpg", "a/1.jpg")
        assert (item.face, item.embedding) == ("f/1.jpg", "f/1.pt")
        assert item.captions == {
            "attribute": Captioned("a hat", [Mask("Attribute/m.png", [1, 2])]),
            "emotion": Captioned("a smile", [Mask("Emotion/x/m.png", [])]),
        }
        assert item.masks == ["Attribute/m.png", "Emotion/x/m.png"]
        assert np.isnan(item.landmarks).all()


@pytest.mark.parametrize(
    "texts",
    [
        {"face_caption": ["a hat", "a second one"]},
        {"face_caption": "a hat"},
        {"face_short_caption": "a hat", "face_caption": ["a longer one"]},
    ],
)
def test_the_older_era_stands_for_both_kinds(texts):
    item = parse(0, {**BASE, **texts, "parsing_masks": MASKS})
    wanted = Captioned("a hat", [Mask("m.png", [1, 2])])
    assert item.captions == {"attribute": wanted, "emotion": wanted}
    assert item.masks == ["m.png"]


def test_of_the_newer_era_one_caption_may_be_missing_and_the_older_one_is_passed_over():
    item = parse(0, {**BASE, "face_emotion_caption": "a smile", "face_caption": ["older"]})
    assert item.captions["attribute"] is item.captions["emotion"]
    assert item.captions["emotion"] == Captioned("a smile", [])


def test_embeddings_of_faces_that_are_not_jpg():
    content = {**BASE, "face_caption": "a hat"}
    assert parse(0, {**content, "face": ["f.x/1.png"]}).embedding == "f.x/1.pt"
    assert parse(0, {**content, "face": "f/1.jpg"}).embedding == "f/1.pt"


def test_landmarks():
    points = [[1, 2.5], [3, 4], [5, 6], [7, 8], [9, 10]]
    item = parse(0, {**BASE, "face_caption": "a hat", "landmarks": points})
    np.testing.assert_array_equal(item.landmarks, np.float32(points))


GOOD = {**BASE, "face_attribute_caption": "a hat", "atrribute_parsing_masks": MASKS}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image": None}, "image must be a path, got None"),
        ({"image": ""}, "image must be a path, got ''"),
        ({"face": []}, "face must be a list that begins with a path, got []"),
        ({"face": [3]}, "face must be a list that begins with a path, got [3]"),
        ({"face_attribute_caption": " \n"}, "face_attribute_caption is empty"),
        ({"face_attribute_caption": 3}, "face_attribute_caption must be text, got 3"),
        ({"face_attribute_caption": "a \ud800"}, "half of a character"),
        ({"attribute_parsing_masks": []}, "are both there: keep one"),
        ({"emotion_parsing_masks": []}, "emotion_parsing_masks without face_emotion_caption"),
        ({"atrribute_parsing_masks": {}}, "atrribute_parsing_masks must be a list, got {}"),
        ({"atrribute_parsing_masks": ["m"]}, "atrribute_parsing_masks[0] is 'm': expected {"),
        ({"atrribute_parsing_masks": [{}]}, "atrribute_parsing_masks[0] has the mask None"),
        ({"atrribute_parsing_masks": [{"mask": "m"}]}, "has the token_indices None"),
        (
            {"atrribute_parsing_masks": [{"mask": "m", "token_indices": [True]}]},
            "has the token_indices [True]",
        ),
        (
            {"atrribute_parsing_masks": [Repeated(MASKS[0])]},
            "atrribute_parsing_masks[0]: a name comes twice",
        ),
        ({"landmarks": [[1, 2]]}, "landmarks must be five [x, y] in pixels, got [[1, 2]]"),
        ({"landmarks": [[1, float("nan")]] * 5}, "landmarks must be five"),
        ({"landmarks": "five"}, "landmarks must be five"),
    ],
)
def test_what_is_not_of_the_layout_is_told(change, problem):
    with pytest.raises(BadItem) as caught:
        parse(0, {**GOOD, **change})
    assert len(caught.value.problems) == 1
    assert problem in caught.value.problems[0]


def test_no_caption_and_a_name_twice():
    with pytest.raises(BadItem, match="no caption: expected one of face_attribute_caption, "):
        parse(0, BASE)
    with pytest.raises(BadItem, match="a name comes twice in it"):
        parse(0, Repeated(GOOD))


def test_all_problems_of_an_item_at_once():
    with pytest.raises(BadItem) as caught:
        parse(0, {"image": 1, "face": None, "landmarks": 2})
    assert [problem.split()[0] for problem in caught.value.problems] == [
        "image",
        "face",
        "landmarks",
    ]
