"""What is written is read; what is no data set is refused by name."""

import json
import shutil

import numpy as np
import pytest

from data.codec import decode
from data.dataset import open_dataset
from data.schema import REQUIRED
from fmv2.errors import UserError
from tests.data.faces import EVERYTHING, Words, face_record, write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    counts = {"train": (3, 2), "test": (1,)}
    return write_dataset(tmp_path_factory.mktemp("d") / "set", counts, schema=EVERYTHING)


def test_splits_schema_and_tokenizer(folder):
    dataset = open_dataset(folder)
    assert dataset.splits == {"train": 5, "test": 1}
    assert dataset.tokenizer == Words().fingerprint
    assert set(dataset.schema.fields()) == set(EVERYTHING.fields())
    assert {f.name: f.classes for f in dataset.schema.factors}["hat"] == ("none", "cap")
    dataset.check_tokenizer(Words())
    assert dataset.key("train", 3) == "person-3"
    assert dataset.key("test", 0) == "person-5"


def test_every_field_comes_back(folder):
    record = open_dataset(folder).source("train")[4]
    written = face_record(4, EVERYTHING)
    for name in ("key", "image", "face", "shading"):
        assert record[name] == getattr(written, name)
    np.testing.assert_array_equal(record["face_id"], written.face_id)
    np.testing.assert_array_equal(record["landmarks"], written.landmarks)
    for kind, caption in written.captions.items():
        count = len(caption.masks)
        assert record[f"{kind}_caption"] == caption.text
        assert record[f"{kind}_count"] == count
        np.testing.assert_array_equal(record[f"{kind}_tokens"][:count], caption.tokens)
        planes = decode(record[f"{kind}_masks"], channels=1)
        np.testing.assert_array_equal(planes & 1, caption.masks[0])
    for name, value in written.optional.items():
        np.testing.assert_array_equal(record[name], value)
    for name, value in written.factors.items():
        np.testing.assert_allclose(record[f"factors/{name}"], value)


def test_of_the_optional_fields_those_asked_for_are_read(folder):
    dataset = open_dataset(folder)
    whole = dataset.source("train")[2]
    required = {name for name in whole if name in REQUIRED}
    assert set(dataset.source("train", ())[2]) == required == set(REQUIRED)
    some = dataset.source("train", ("labels", "factors"))[2]
    assert set(some) - required == {"labels", "factors/hat", "factors/smile", "factors/identity"}
    for name, value in some.items():
        np.testing.assert_array_equal(value, whole[name])


def test_numbers_out_of_range(folder):
    source = open_dataset(folder).source("train")
    with pytest.raises(IndexError, match="0 to 4, not 5"):
        source[5]
    with pytest.raises(IndexError, match="not -1"):
        source[-1]


def test_another_tokenizer_is_refused(folder):
    other = Words(("", "left", "right"))
    with pytest.raises(UserError, match=f"{Words().fingerprint}.*{other.fingerprint}.*build it"):
        open_dataset(folder).check_tokenizer(other)


def test_unknown_split(folder):
    with pytest.raises(UserError, match=r"no split 'validation'.*train"):
        open_dataset(folder).source("validation")


def test_refusals(folder, tmp_path):
    with pytest.raises(UserError, match=r"no such folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"not a data set.*fmv2 data synth"):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match=rf"not a data set.*name one of its folders, {folder.name}"):
        open_dataset(folder.parent)

    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / ".building").mkdir()
    with pytest.raises(UserError, match=r"not finished: run the command"):
        open_dataset(copy)
    (copy / ".building").rmdir()

    (copy / "metadata.json").write_text("{}")
    with pytest.raises(UserError, match=r"does not name the tokenizer"):
        open_dataset(copy)

    about = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps({**about, "version": "2.0.0"}))
    with pytest.raises(UserError, match=r"version 2\.0\.0, this program reads 1\.0\.0"):
        open_dataset(copy)
    (copy / "dataset_info.json").write_text("{nonsense")
    with pytest.raises(UserError, match=r"cannot be opened"):
        open_dataset(copy)


def test_another_projects_data_set_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    features = json.loads((copy / "features.json").read_text())
    del features["featuresDict"]["features"]["shading"]
    (copy / "features.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match=r"shading is missing"):
        open_dataset(copy)
