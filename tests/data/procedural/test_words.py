"""Captions say what is so, mark what they say, and say it in many ways."""

import numpy as np
import pytest

from data.procedural.factors import CLASSES, EMOTIONS, EXPRESSION
from data.procedural.words import attribute_caption, emotion_caption
from data.schema import CAPTION_KINDS, MASKS
from fmv2.face.regions import REGIONS
from tests.data.procedural.dictionary import DEEDS, KINDS, Reader
from tests.data.procedural.pictures import COUNT, picture, told


def test_every_claim_is_true():
    for one in told():
        for kind in CAPTION_KINDS:
            reader = Reader(kind, one)
            try:
                reader.read()
            except (AssertionError, KeyError) as error:
                raise AssertionError(f"{reader.worded} of {one}: {error!r}") from error


def test_everything_there_is_gets_said():
    said = set()
    for one in told():
        said |= Reader("attribute", one).read()
    wanted = {(name, one) for name, classes in CLASSES.items() for one in classes}
    assert wanted <= said
    said = set()
    for one in told():
        said |= Reader("emotion", one).read()
    wanted = {("emotion", emotion) for emotion in EMOTIONS}
    wanted |= {("deed", pattern) for _, pattern, *_ in DEEDS}
    assert wanted <= said


@pytest.mark.parametrize("kind", CAPTION_KINDS)
def test_the_reader_sees_a_lie(kind):
    """The same captions, told of other pictures: nearly none is true."""
    pictures = told()[:300]
    wrong = 0
    for one, other in zip(pictures, pictures[1:] + pictures[:1], strict=True):
        lie = one._replace(
            attribute_caption=other.attribute_caption, emotion_caption=other.emotion_caption
        )
        try:
            Reader(kind, lie).read()
        except (AssertionError, KeyError):
            wrong += 1
    assert wrong > 0.9 * len(pictures)


def test_phrases_are_short_apart_and_of_known_regions():
    regions = set()
    for one in told():
        for text, phrases in (one.attribute_caption, one.emotion_caption):
            assert text
            assert len(phrases) <= MASKS
            behind = 0
            for start, end, region in phrases:
                assert behind <= start < end <= len(text)
                words = text[start:end].lower().split(" ")
                assert 1 <= len(words) <= 4
                assert all(word.isalpha() for word in words)
                assert not {"a", "an", "the"} & set(words)
                regions.add(region)
                behind = end
    assert regions <= set(REGIONS)
    assert {*KINDS, "expression", "mouth", "brows", "left_eye", "right_eye", "nose"} <= regions


def test_the_same_generator_says_the_same():
    classes, emotion, expression = picture(np.random.default_rng(0))
    one, other = np.random.default_rng(1), np.random.default_rng(1)
    for _ in range(50):
        assert attribute_caption(classes, one) == attribute_caption(classes, other)
        assert emotion_caption(emotion, expression, classes, one) == emotion_caption(
            emotion, expression, classes, other
        )
    assert one.bit_generator.state == other.bit_generator.state


def test_captions_are_many_and_of_every_length():
    """Of 10,000 draws 9,954 and 9,497 were distinct."""
    pictures = told()
    for kind, floor in (("attribute_caption", 0.99), ("emotion_caption", 0.94)):
        texts = [getattr(one, kind).text for one in pictures]
        assert len(set(texts)) > floor * COUNT
    counts = np.bincount([len(p.attribute_caption.phrases) for p in pictures], minlength=9)
    assert (counts[1:] > 0.03 * COUNT).all()


def test_one_picture_has_many_captions():
    classes, _, _ = picture(np.random.default_rng(0))
    rng = np.random.default_rng(2)
    assert len({attribute_caption(classes, rng).text for _ in range(1000)}) > 950
    calm = dict.fromkeys(EXPRESSION, 0.0)
    smiling = {**calm, "smile": 0.5, "mouth_open": 0.5}
    happy = {emotion_caption("happy", smiling, classes, rng).text for _ in range(1000)}
    assert len(happy) > 600
    neutral = {emotion_caption("neutral", calm, classes, rng).text for _ in range(1000)}
    assert len(neutral) > 300


def test_what_cannot_be_seen_is_not_spoken_of():
    rng = np.random.default_rng(0)
    for one in told()[:300]:
        seen = {"cloth_color": one.classes["cloth_color"], "earrings": "none"}
        worded = attribute_caption(seen, rng)
        assert {phrase.region for phrase in worded.phrases} <= {"clothes"}
        Reader("attribute", one._replace(classes={**seen}, attribute_caption=worded)).read()
