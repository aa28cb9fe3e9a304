"""ArcFace out of ONNX computes what the graph computes; other graphs are refused."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convert.components import plan
from convert.kinds import identify
from convert.peers import IResNet
from fmv2.errors import UserError
from fmv2.models.arcface import ArcFaceConfig
from tests.parity import randomize_, relative_error
from tests.random_model import face_encoder

# torch deprecates the exporter that published models were made with.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:It is recommended that constant folding:UserWarning"
)


def export(module, path, *, fuse=True, size=32):
    torch.onnx.export(
        module,
        (torch.randn(1, 3, size, size),),
        path,
        dynamo=False,
        training=torch.onnx.TrainingMode.EVAL if fuse else torch.onnx.TrainingMode.PRESERVE,
    )


@pytest.mark.parametrize("fuse", [True, False])
def test_equals_the_graph(tmp_path, fuse):
    peer = face_encoder()
    export(peer, tmp_path / "x", fuse=fuse)
    source = identify(tmp_path / "x")
    assert source.kind == "ArcFace IResNet"
    net = plan(source.parts)["face_encoder"].load("face_encoder", None)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = peer(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    assert relative_error(net(jnp.asarray(images)), expected) < 2e-6


def test_norms_were_fused(tmp_path):
    """Else the test above would not see the identity norms."""
    export(face_encoder(), tmp_path / "x")
    tensors = identify(tmp_path / "x").parts["face_encoder"].tensors
    np.testing.assert_array_equal(tensors["layer1.0.bn3.weight"].read(), 1)


def test_other_strides_are_refused(tmp_path):
    peer = randomize_(
        IResNet(ArcFaceConfig(layers=(1, 1, 1, 1), widths=(4, 4, 4, 4), image_size=32))
    )
    peer.layer2[0].conv2.stride = peer.layer2[0].downsample[0].stride = (1, 1)
    peer.fc = torch.nn.Linear(4 * 16, 512)
    export(peer.eval(), tmp_path / "x")
    with pytest.raises(UserError, match=r"layer2\.0\.conv2 .* expected a 3x3 kernel") as error:
        identify(tmp_path / "x")
    assert "\n" not in str(error.value)


def test_other_graphs_are_refused(tmp_path):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU())
    export(net.eval(), tmp_path / "x")
    with pytest.raises(
        UserError, match=r"not an ArcFace IResNet: after tensor .* expected one PRelu"
    ):
        identify(tmp_path / "x")


def test_truncated(tmp_path):
    export(face_encoder(), tmp_path / "x")
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:2000])
    with pytest.raises(UserError, match="no ONNX model") as error:
        identify(tmp_path / "x")
    assert "\n" not in str(error.value)
