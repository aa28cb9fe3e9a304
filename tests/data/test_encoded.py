"""Records with the moments of a VAE: the right ones, and all else is as it was."""

import dataclasses

import jax
import numpy as np
import pytest

from convert.components import COMPONENTS
from convert.folder import Model, assemble, write
from convert.kinds import EMBEDDED
from data.codec import decode
from data.dataset import open_dataset
from data.encoded import Encoded, check_vae
from data.shards import write as write_records
from fmv2.errors import UserError
from fmv2.inputs import image_input
from fmv2.models.abstract import abstract
from fmv2.pictures import square
from tests.data.faces import EVERYTHING, face_record, write_dataset
from tests.train.small import random_net, small_configs

SIZE = 24
"""Less than the pictures' 32: they are shrunk as for training."""


def model_with_vae(folder, seed: int):
    rng = np.random.default_rng(seed)
    vae = random_net(abstract(COMPONENTS["vae"].net, small_configs()["vae"]), rng)
    write(Model(tokenizer={"vocab.json": b"{}"}, scheduler=EMBEDDED.scheduler, vae=vae), folder)
    return folder, vae


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A folder with nothing but a VAE, and the net."""
    return model_with_vae(tmp_path_factory.mktemp("m") / "model", seed=0)


def colourful(number, schema):
    """A record whose picture is not all of one colour."""
    record = face_record(number, schema)
    return dataclasses.replace(record, image=face_record(number + 50, schema).shading)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Shards of unlike lengths, with another VAE's moments, which must go."""
    folder = tmp_path_factory.mktemp("d") / "drawn"
    shards = {"train": (3, 10), "validation": (2,)}
    return write_dataset(folder, shards, schema=EVERYTHING, record=colourful)


@pytest.fixture(scope="module")
def encoded(drawn, vae, tmp_path_factory):
    out = tmp_path_factory.mktemp("e") / "encoded"
    write_records(Encoded(data=str(drawn), model=vae[0], size=SIZE), out)
    return out


def test_moments_are_those_of_the_picture_that_training_sees(encoded, vae):
    records = open_dataset(encoded).source("train")
    pictures = np.stack([square(decode(r["image"]), SIZE) for r in records])
    mean, logvar = jax.jit(lambda net, x: net.encode(image_input(x)))(vae[1], pictures)
    assert np.std(mean) > 0.1
    for found, wanted in zip(records, np.concatenate([mean, logvar], axis=-1), strict=True):
        assert found["latent_moments"].dtype == np.float16
        np.testing.assert_allclose(found["latent_moments"], wanted, rtol=2e-3, atol=2e-3)


def test_all_else_is_as_it_was(encoded, drawn):
    before, after = open_dataset(drawn), open_dataset(encoded)
    assert after.splits == before.splits == {"train": 13, "validation": 2}
    assert after.tokenizer == before.tokenizer
    for split in before.splits:
        for old, new in zip(before.source(split), after.source(split), strict=True):
            assert old.keys() == new.keys()
            for name in old.keys() - {"latent_moments"}:
                np.testing.assert_array_equal(old[name], new[name])
    lengths = [split.shard_lengths for split in after.builder.info.splits.values()]
    assert lengths == [[3, 10], [2]]


def test_a_run_needs_the_moments_of_its_own_vae_and_size(encoded, drawn, vae, tmp_path):
    base = assemble([vae[0]])
    check_vae(open_dataset(encoded), base, SIZE)
    with pytest.raises(UserError, match=r"as \(3, 3, 8\), but .* --size 32"):
        check_vae(open_dataset(encoded), base, 32)
    with pytest.raises(UserError, match="is encoded by no VAE"):
        check_vae(open_dataset(drawn), base, SIZE)
    other, _ = model_with_vae(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="fmv2 data encode --model BASE --size 24"):
        check_vae(open_dataset(encoded), assemble([other]), SIZE)


def test_a_broken_picture_is_named(vae, tmp_path):
    def broken(number, schema):
        record = face_record(number, schema)
        return dataclasses.replace(record, image=record.image[:9]) if number == 1 else record

    write_dataset(tmp_path / "drawn", {"train": (2,)}, record=broken)
    source = Encoded(data=str(tmp_path / "drawn"), model=vae[0], size=SIZE)
    with pytest.raises(UserError, match=r"record 1 \('person-1'\)"):
        write_records(source, tmp_path / "out")


def test_a_model_without_a_vae_is_refused(tmp_path, drawn, vae):
    source = assemble([vae[0]])
    with pytest.raises(UserError, match="has no VAE"):
        check_vae(open_dataset(drawn), dataclasses.replace(source, parts={}), SIZE)
