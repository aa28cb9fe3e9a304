"""A whole Face-MakeUpV2 of few layers and random weights, head and all."""

from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np

from convert.components import COMPONENTS
from convert.folder import Model
from data.procedural.head import make_head
from fmv2.face.head import Head
from fmv2.models.abstract import abstract
from fmv2.models.coefficient_encoder import CoefficientEncoderConfig
from fmv2.models.id_adapter import IdAdapterConfig
from fmv2.models.shadingnet import ShadingNetConfig
from fmv2.tokens import EMBEDDED, Tokens
from tests.train.small import IMAGE_SIZE, SCHEDULER, random_net, small_configs

SIZE = IMAGE_SIZE


@cache
def small_model() -> Model:
    """Of pictures of 64². Its coefficient encoder puts every head in the middle of its picture."""
    rng = np.random.default_rng(0)
    configs = small_configs(vocabulary=Tokens.load(EMBEDDED).size)
    configs |= {
        "adapter": IdAdapterConfig.for_unet(configs["unet"], rank=2, id_dim=16, face_dim=32),
        "shadingnet": ShadingNetConfig.for_unet(
            configs["unet"], conditioning_embedding_out_channels=(4, 4, 8, 8)
        ),
        "coefficient_encoder": CoefficientEncoderConfig.tiny(),
    }
    nets: dict[str, Any] = {
        name: random_net(abstract(COMPONENTS[name].net, config), rng)
        for name, config in configs.items()
    }
    # Else random weights hardly see the map.
    embedding = nets["shadingnet"].controlnet_cond_embedding.conv_out
    embedding.kernel[...] = 10 * embedding.kernel[...]
    out = nets["coefficient_encoder"].out
    scale = np.full(236, 0.1, np.float32)
    bias = np.zeros(236, np.float32)
    scale[206:209], bias[206:209] = 0, (5.8, 0, 0.01)
    bias[209:212], bias[218:221] = 2, 0.5
    out.kernel[...] = out.kernel[...] * scale[None]
    out.bias[...] = jnp.asarray(bias)
    made = make_head()
    return Model(
        **nets,
        tokenizer={path.name: path.read_bytes() for path in EMBEDDED.iterdir()},
        scheduler=SCHEDULER,
        head=Head(made.model, made.surface),
    )


def picture(seed: int = 0, height: int = 80, width: int = 100) -> np.ndarray:
    """Smooth colours, other ones for each seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 40
    waves = rng.normal(size=(3, 3))
    planes = [np.sin(a * x + b * y + 3 * c) for a, b, c in waves]
    return np.round(127.5 + 127 * np.stack(planes, -1)).astype(np.uint8)
