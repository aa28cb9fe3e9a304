import numpy as np
import pytest

from data.codec import encode_png, pack_masks
from data.dataset import open_dataset
from data.statistics import Spread, Survey, sample
from tests.data.faces import EVERYTHING, Words, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("d") / "set"
    return open_dataset(write_dataset(folder, {"train": (6,)}, schema=EVERYTHING))


def test_captions_masks_and_factors_are_counted(dataset):
    survey = Survey(dataset, Words())
    records = dataset.source("train")
    for number in range(6):
        record = records[number]
        if number == 2:
            masks = np.zeros((2, 32, 32), bool)
            masks[0, :8] = True  # a quarter; the other mask is blank
            tokens = record["attribute_tokens"].copy()
            tokens[1] = False
            record |= {"attribute_caption": "a hat", "attribute_tokens": tokens}
            record |= {"attribute_masks": encode_png(pack_masks(masks))}
            record |= {"landmarks": np.full((5, 2), np.nan)}
        survey.add(record)
    found = survey.result()
    assert found.records == 6
    assert found.sizes == {"32×32": 6}
    assert found.without_landmarks == 1
    attribute = found.captions["attribute"]
    assert (attribute.captions, attribute.distinct, attribute.empty) == (6, 2, 0)
    assert attribute.words == {"a": 6, "red": 5, "hat": 6}
    assert (attribute.tokens.least, attribute.tokens.most) == (2, 3)
    assert attribute.masks == (2, 2, 2, 2, 2)
    assert (attribute.blank, attribute.cut) == (1, 1)
    assert attribute.areas.least == 0
    assert attribute.areas.median == pytest.approx(0.5, abs=0.05)
    assert found.captions["emotion"].masks.most == 1
    assert found.classes == {"hat": {"none": 3, "cap": 3}}
    assert found.numbers["smile"].most == pytest.approx(0.05)
    assert set(found.numbers) == {"smile", "identity"}


def test_without_a_tokenizer_no_tokens_are_counted(dataset):
    survey = Survey(dataset, None)
    survey.add(dataset.source("train")[0])
    assert survey.result().captions["attribute"].tokens is None


def test_spread_of_nothing():
    assert Spread.of([]) is None


def test_a_sample_is_even_bounded_and_fixed():
    assert sample(5, 10) == [0, 1, 2, 3, 4]
    assert sample(1000, 4) == [0, 333, 666, 999]
    assert sample(0, 4) == []
