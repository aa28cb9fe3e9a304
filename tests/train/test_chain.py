"""A base made part by part: each adds its nets to the folder of the one before."""

import dataclasses

import numpy as np
import pytest

from convert import runs
from convert.folder import assemble, read
from convert.kinds import identify
from fmv2.models.arcface import ArcFaceConfig
from fmv2.models.vae import AutoencoderKLConfig
from fmv2.tokens import EMBEDDED, Tokens
from tests.data.faces import EVERYTHING, face_record, write_dataset
from train.chain import MODELS, train_chain
from train.config import ReportConfig, TrainConfig
from train.loop import train
from train.objectives.face_encoder import FaceEncoder
from train.objectives.vae import VAE
from train.optimizer import OptimizerConfig


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    data = write_dataset(
        tmp_path_factory.mktemp("records") / "data",
        {"train": (16,)},
        schema=EVERYTHING._replace(optional=(), latent_shape=None),
        record=lambda number, schema: face_record(number, schema, side=64),
        metadata={"tokenizer": Tokens.load(EMBEDDED).fingerprint},
    )
    encoder = ArcFaceConfig(
        layers=(1, 1, 1, 1), widths=(2, 2, 2, 2), embedding_size=8, image_size=16
    )
    vae = AutoencoderKLConfig(
        block_out_channels=(4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    common = TrainConfig(
        data=str(data),
        steps=2,
        objective=VAE(vae=vae),
        optimizer=OptimizerConfig(learning_rate=1e-2, ema_decay=0.5),
        batch_size=8,
        size=64,
        compute="float32",
        report=ReportConfig(log_every=1, validate_every=0, sample_every=0),
    )
    face = dataclasses.replace(
        common,
        objective=FaceEncoder(identities=8, face_encoder=encoder),
        optimizer=OptimizerConfig(learning_rate=1e-2, ema_decay=None),
    )
    return {"vae": common, "face": face}


@pytest.fixture(scope="module")
def made(parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("chain")
    assert train_chain(parts, out) == 0
    return out


def test_each_part_adds_its_nets(parts, made):
    first, last = (identify(made / MODELS / name) for name in parts)
    assert set(first.parts) == {"vae"}
    assert set(last.parts) == {"vae", "face_encoder"}  # and no centres
    assert last.kind == "Stable Diffusion folder without unet, text_encoder"
    model = read(assemble([made / MODELS / "face"]))
    assert model.vae.config == parts["vae"].objective.vae
    assert model.face_encoder.config == parts["face"].objective.face_encoder
    assert (
        Tokens.load(made / MODELS / "face" / "tokenizer").fingerprint
        == Tokens.load(EMBEDDED).fingerprint
    )


def test_folders_hold_what_was_trained(parts, made):
    """The running mean where there is one, and norms' statistics as they were left."""
    for name, component in (("vae", "vae"), ("face", "face_encoder")):
        trained = runs.source(made / name).parts[component].tensors
        written = identify(made / MODELS / "face").parts[component].tensors
        assert trained.keys() == written.keys()
        for key, ref in trained.items():
            np.testing.assert_array_equal(ref.read(), written[key].read())
    mean = written["bn1.running_mean"].read()
    assert np.abs(mean).max() > 0


def test_what_is_done_is_not_done_again(parts, made):
    def run(config):
        raise AssertionError(config)

    assert train_chain(parts, made, run=run) == 0


def test_a_part_that_was_stopped_stops_the_chain_and_is_resumed(parts, made, tmp_path):
    asked = []

    def stopped(config):
        asked.append(config)
        return 130

    (tmp_path / MODELS).mkdir()
    (made / MODELS / "vae").rename(tmp_path / MODELS / "vae")
    assert train_chain(parts, tmp_path, run=stopped) == 130
    (config,) = asked
    assert (config.base, config.out) == (tmp_path / MODELS / "vae", str(tmp_path / "face"))
    (tmp_path / MODELS / "vae").rename(made / MODELS / "vae")
    # The run is whole, its folder was not written yet: it ends at once.
    (made / MODELS / "face").rename(tmp_path / "before")
    assert train_chain(parts, made, run=train) == 0
    assert {p.name for p in (made / MODELS / "face").iterdir()} == {
        p.name for p in (tmp_path / "before").iterdir()
    }
