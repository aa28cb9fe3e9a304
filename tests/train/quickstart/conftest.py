"""A base and a scorer of few layers and random weights, in the place of those that are shipped."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from convert.components import COMPONENTS
from convert.folder import Model, write
from convert.kinds import EMBEDDED
from data.procedural.head import make_head
from fmv2.face.head import Head
from fmv2.metrics.scorer import Scorer as ScorerNet
from fmv2.metrics.scorer import write_scorer
from fmv2.models.abstract import abstract
from fmv2.models.coefficient_encoder import CoefficientEncoderConfig
from fmv2.models.id_adapter import IdAdapterConfig
from fmv2.models.shadingnet import ShadingNetConfig
from fmv2.tokens import EMBEDDED as TOKENIZER
from fmv2.tokens import Tokens
from tests.train.small import IMAGE_SIZE, random_net, small_configs
from train.objectives.scorer import Scorer


def write_model(folder, *, whole):
    """As `fmv2/assets/tiny`, or, when whole, with adapter and ShadingNet."""
    rng = np.random.default_rng(0)
    configs = {
        **small_configs(vocabulary=Tokens.load(TOKENIZER).size),
        "coefficient_encoder": CoefficientEncoderConfig.tiny(),
    }
    if whole:
        unet, sizes = configs["unet"], {"face_dim": 32, "id_dim": 16, "rank": 2}
        configs["adapter"] = IdAdapterConfig.for_unet(unet, **sizes)
        configs["shadingnet"] = ShadingNetConfig.for_unet(unet)
    nets = {
        name: random_net(abstract(COMPONENTS[name].net, config), rng)
        for name, config in configs.items()
    }
    made = make_head()
    model = Model(
        **nets,
        tokenizer={path.name: path.read_bytes() for path in TOKENIZER.iterdir()},
        scheduler=EMBEDDED.scheduler,
        head=Head(made.model, made.surface),
    )
    write(model, folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("base") / "tiny", whole=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model", whole=True)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """Of few layers, random too."""
    trunk = dataclasses.replace(CoefficientEncoderConfig.tiny(), image_size=IMAGE_SIZE)
    config = dataclasses.replace(Scorer().fresh({})["scorer"], trunk=trunk)
    net = ScorerNet(config, rngs=nnx.Rngs(0))
    state = nnx.to_flat_state(nnx.state(net))
    folder = tmp_path_factory.mktemp("scorer")
    arrays = {".".join(map(str, path)): np.asarray(x[...]) for path, x in state}
    write_scorer(config.to_config(), arrays, folder)
    return folder
