"""The objective against the published one in PyTorch, and its terms against finite differences."""

import collections
import dataclasses

import jax
import numpy as np
import optax
import pytest
import torch
from diffusers import DDPMScheduler
from flax import nnx

from convert import engine
from convert.tables import id_adapter as adapter_table
from convert.tables import shadingnet as shadingnet_table
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.models.clip_text import CLIPTextModel
from fmv2.models.clip_vision import CLIPVisionModelWithProjection
from fmv2.models.id_adapter import IdAdapterConfig
from fmv2.models.unet import UNetConfig
from tests.fmv2.models import test_clip, test_id_adapter, test_shadingnet, test_unet, test_vae
from tests.parity import relative_error, to_nchw
from tests.train.batches import face_batch
from tests.train.objectives.published import Published
from train.objectives.face_makeup import FaceMakeUp
from train.optimizer import make_optimizer
from train.presets.sd15_upstream import sd15_upstream
from train.step import init_state, make_step, split

# Half as many layers as SD 1.5 has compile in half the time; every kind of layer is there.
TINY = dataclasses.replace(UNetConfig.tiny(), layers_per_block=1)
TEXT = dataclasses.replace(test_clip.TEXT, max_position_embeddings=77)
VISION = dataclasses.replace(test_clip.VISION, image_size=64, patch_size=4)  # 257 tokens
SCHEDULE = NoiseSchedule(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
STEPS = 20


class Telling(FaceMakeUp):
    """The objective, which tells what it left to chance."""

    def loss(self, trained, frozen, batch, key, schedule):
        chance = self.draw(frozen, batch, key, schedule)
        loss, metrics = self.loss_at(trained, frozen, batch, chance, schedule)
        return loss, {**metrics, "chance": chance}


@dataclasses.dataclass(repr=False)
class Side:
    """What one of the two says of the same steps, by the names of the files."""

    terms: list[dict[str, float]]
    gradients: dict[str, np.ndarray]
    """Of the first step."""
    moved: dict[str, np.ndarray]
    """Weights after the last less those before the first."""


def by_name(nets) -> dict[str, np.ndarray]:
    """What the trained nets hold, by the names of the files."""
    table = shadingnet_table.table(nets["shadingnet"].config)
    control = {f"shadingnet.{k}": v for k, v in engine.dump(nets["shadingnet"], table)}
    return {**dict(engine.dump(nets["adapter"], adapter_table.TABLE)), **control}


@pytest.fixture(scope="module")
def sides() -> tuple[Side, Side]:
    """Ours and the published one, over the same 20 steps."""
    batch, masks = face_batch(face=VISION.image_size)
    preset = sd15_upstream()
    torch_unet, unet = test_unet.pair(TINY)
    torch_vae, vae = test_vae.peers(test_vae.TINY)
    torch_text, text = test_clip.peers(CLIPTextModel, TEXT)
    torch_vision, vision = test_clip.peers(CLIPVisionModelWithProjection, VISION)
    torch_control, control = test_shadingnet.pair(TINY)
    adapter = test_id_adapter.random_adapter(IdAdapterConfig.for_unet(TINY, face_dim=32, rank=4))
    published = Published(
        unet=torch_unet,
        vae=torch_vae,
        text_encoder=torch_text,
        image_encoder=torch_vision,
        shadingnet=torch_control,
        adapter=test_id_adapter.state_dict(adapter),
        layers=[layer.path for layer in TINY.attention_layers()],
        scheduler=DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        ),
    )

    trained = {"adapter": adapter, "shadingnet": control}
    start = by_name(trained)
    frozen = {"unet": unet, "vae": vae, "text_encoder": text, "image_encoder": vision}
    objective = Telling(**dataclasses.asdict(preset.objective))
    optimizer = make_optimizer(preset.optimizer, STEPS)
    graph, _, stats = split(trained)
    state = init_state(trained, optimizer, preset.optimizer, seed=0)
    step = jax.jit(make_step(objective, graph, optimizer, preset.optimizer, SCHEDULE))

    weights = published.trainables()
    adamw = torch.optim.AdamW(weights.values(), lr=1e-4, weight_decay=1e-2)
    given = {
        name: torch.from_numpy(np.array(getattr(batch, name)))
        for name in (
            *("image", "face", "shading", "input_ids", "face_id", "face_dropped"),
            *("token_mask", "mask_valid"),
        )
    }
    given["masks"] = torch.from_numpy(masks)

    ours, theirs = Side([], {}, {}), Side([], {}, {})
    for number in range(STEPS):
        state, metrics = step(state, frozen, batch)
        chance = metrics["chance"]
        ours.terms.append({name: float(metrics[name]) for name in ("loss", "noise", "map")})
        losses = published.losses(
            given,
            to_nchw(chance.latents),
            to_nchw(chance.noise),
            torch.from_numpy(np.array(chance.timesteps)),
        )
        theirs.terms.append({name: value.item() for name, value in losses.items()})
        adamw.zero_grad()
        losses["loss"].backward()
        if number == 0:
            theirs.gradients = {name: x.grad.clone().numpy() for name, x in weights.items()}
            # After one step AdamW's first moment is the gradient times 1 - b1.
            moment = nnx.merge(graph, optax.tree.get(state.optimizer, "mu"), stats)
            ours.gradients = {name: 10 * x for name, x in by_name(moment).items()}
        adamw.step()
    last = by_name(nnx.merge(graph, state.params, state.stats))
    ours.moved = {name: x - start[name] for name, x in last.items()}
    theirs.moved = {name: x.detach().numpy() - start[name] for name, x in weights.items()}
    return ours, theirs


def test_terms_equal_the_published_objective(sides):
    ours, theirs = sides
    assert min(theirs.terms[0].values()) > 0.01
    assert ours.terms[0] == pytest.approx(theirs.terms[0], rel=1e-4)


def test_gradients_of_every_trainable_equal_the_published_objective(sides):
    ours, theirs = sides
    assert ours.gradients.keys() == theirs.gradients.keys()
    counts = collections.Counter(name.split(".")[0] for name in ours.gradients)
    # Of each attention layer eight tensors of LoRA, of each cross-attention two of the ID's.
    assert counts["image_proj"] == 56
    assert counts["ip_adapter"] == 8 * len(TINY.attention_layers()) + 2 * 10
    assert counts["shadingnet"] > 200
    errors = errors_of(ours.gradients, theirs.gradients)
    assert errors[0][0] <= 1e-4, errors[:5]


def test_twenty_steps_stay_together(sides):
    ours, theirs = sides
    for mine, published in zip(ours.terms, theirs.terms, strict=True):
        assert mine == pytest.approx(published, rel=1e-4)
    missed = norm({name: ours.moved[name] - x for name, x in theirs.moved.items()})
    assert missed <= 1e-3 * norm(theirs.moved)


def norm(tensors):
    return np.sqrt(sum(np.sum(np.square(x)) for x in tensors.values()))


def errors_of(actual, expected):
    """Largest first, each with its name."""
    return sorted(((relative_error(actual[k], v), k) for k, v in expected.items()), reverse=True)
