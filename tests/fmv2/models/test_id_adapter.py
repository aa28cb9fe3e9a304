"""The adapter against diffusers: projector, U-Net under it, gradients, and what zero means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import IPAdapterFaceIDPlusImageProjection
from flax import nnx

from convert import engine
from convert.tables import id_adapter as adapter_table
from convert.tables import shadingnet as shadingnet_table
from fmv2.models.abstract import abstract
from fmv2.models.id_adapter import IdAdapter, IdAdapterConfig, mix_identities
from fmv2.models.unet import UNetConfig
from tests.fmv2.models import test_shadingnet, test_unet
from tests.parity import relative_error, to_nchw, to_nhwc

TINY = UNetConfig.tiny()
SMALL = {"id_dim": 24, "face_dim": 40, "rank": 4}


def random_adapter(config: IdAdapterConfig, seed: int = 0) -> IdAdapter:
    """Nothing zero: LoRA, norms and biases too."""
    adapter = abstract(IdAdapter, config)
    rng = np.random.default_rng(seed)

    def draw(x):
        mean, std = (0, x.shape[0] ** -0.5) if len(x.shape) > 1 else (0.5, 0.2)
        return jnp.asarray(rng.normal(mean, std, x.shape).astype(np.float32))

    graph, state = nnx.split(adapter)
    return nnx.merge(graph, jax.tree.map(draw, state))


def state_dict(adapter: IdAdapter) -> dict[str, torch.Tensor]:
    return {k: torch.tensor(v) for k, v in engine.dump(adapter, adapter_table.TABLE)}


def diffusers_projector(adapter: IdAdapter) -> IPAdapterFaceIDPlusImageProjection:
    """diffusers' projector, loaded by diffusers from what our adapter writes."""
    weights = {
        k.removeprefix("image_proj."): v
        for k, v in state_dict(adapter).items()
        if k.startswith("image_proj.")
    }
    projector = loader()._convert_ip_adapter_image_proj_to_diffusers(
        weights, low_cpu_mem_usage=False
    )
    assert isinstance(projector, IPAdapterFaceIDPlusImageProjection)
    projector.shortcut = True
    return projector


def loader():
    return test_unet.diffusers.UNet2DConditionModel.from_config(TINY.to_config())


@pytest.fixture(scope="module")
def adapter():
    # Heads are 64 wide and as many as fit; diffusers reads the rest from the shapes of the weights.
    return random_adapter(IdAdapterConfig.for_unet(TINY, **SMALL))


def identity(batch=2):
    return test_unet.normal(batch, 24, seed=3), test_unet.normal(batch, 9, 40, seed=4)


@pytest.mark.parametrize("s_scale", [1.0, 0.3])
def test_the_projector_equals_diffusers(s_scale):
    config = IdAdapterConfig(layers=(), token_dim=32, id_dim=24, face_dim=40, resampler_heads=2)
    ours = random_adapter(config)
    theirs = diffusers_projector(ours)
    embedding, features = identity()
    theirs.clip_embeds = torch.tensor(np.array(features))[:, None]
    theirs.shortcut_scale = s_scale
    expected = theirs(torch.tensor(np.array(embedding)))
    assert relative_error(ours.image_proj(embedding, features, s_scale), expected) <= 1e-5


class Published(torch.nn.Module):
    """diffusers' U-Net under IP-Adapter processors, every learnt weight a leaf of autograd."""

    def __init__(self, unet, adapter: IdAdapter, scale: float, s_scale: float):
        super().__init__()
        self.unet, self.scale = unet, scale
        weights = state_dict(adapter)
        unet._load_ip_adapter_weights(
            [
                {
                    top: {
                        k.removeprefix(f"{top}."): v
                        for k, v in weights.items()
                        if k.startswith(f"{top}.") and "lora" not in k
                    }
                    for top in ("image_proj", "ip_adapter")
                }
            ]
        )
        for processor in unet.attn_processors.values():
            if hasattr(processor, "scale"):
                processor.scale = [scale]
        (self.projector,) = unet.encoder_hid_proj.image_projection_layers
        self.projector.shortcut, self.projector.shortcut_scale = True, s_scale
        self.lora = {k: v.requires_grad_() for k, v in weights.items() if "lora" in k}

    def forward(self, latents, timesteps, context, embedding, features, **residuals):
        self.projector.clip_embeds = features[:, None]
        weights = dict(self.unet.named_parameters())
        for number, layer in enumerate(TINY.attention_layers()):
            for name, place in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out.0")):
                up, down = (
                    self.lora[f"ip_adapter.{number}.to_{name}_lora.{end}.weight"]
                    for end in ("up", "down")
                )
                key = f"{layer.path}.{place}.weight"
                weights[key] = weights[key] + up @ down
        return torch.func.functional_call(
            self.unet,
            weights,
            (latents, timesteps, context),
            {"added_cond_kwargs": {"image_embeds": [embedding[:, None]]}, **residuals},
        ).sample

    def gradients(self) -> dict[str, torch.Tensor]:
        """By the names of the adapter's files."""
        found = {k: v.grad for k, v in self.lora.items()}
        for number, layer in enumerate(TINY.attention_layers()):
            processor = self.unet.attn_processors[f"{layer.path}.processor"]
            if layer.context_dim is not None:
                found[f"ip_adapter.{number}.to_k_ip.weight"] = processor.to_k_ip[0].weight.grad
                found[f"ip_adapter.{number}.to_v_ip.weight"] = processor.to_v_ip[0].weight.grad
        names = {"proj.net.0.proj": "proj.0", "proj.net.2": "proj.2", "norm": "norm"}
        for name in ("proj_in", "proj_out", "norm_out"):
            names[name] = f"perceiver_resampler.{name}"
        for i in range(len(self.projector.layers)):
            mine, files = f"layers.{i}.", f"perceiver_resampler.layers.{i}."
            for a, b in (
                ("ln0", "0.norm1"),
                ("ln1", "0.norm2"),
                ("attn.to_q", "0.to_q"),
                ("attn.to_out.0", "0.to_out"),
                ("ff.0", "1.0"),
                ("ff.1.net.0.proj", "1.1"),
                ("ff.1.net.2", "1.3"),
            ):
                names[mine + a] = files + b
            key, value = (
                getattr(self.projector.layers[i].attn, n).weight.grad for n in ("to_k", "to_v")
            )
            found[f"image_proj.{files}0.to_kv.weight"] = torch.cat([key, value])
        for key, parameter in self.projector.named_parameters():
            module, kind = key.rsplit(".", 1)
            if module in names:
                found[f"image_proj.{names[module]}.{kind}"] = parameter.grad
        return found


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_the_adapted_unet_equals_diffusers(adapter, scale):
    theirs, ours = test_unet.pair(TINY)
    published = Published(theirs, adapter, scale, s_scale=0.7)
    given, (embedding, features) = test_unet.inputs(TINY), identity()
    with torch.no_grad():
        expected = published(
            *test_unet.torch_inputs(*given),
            torch.tensor(np.array(embedding)),
            torch.tensor(np.array(features)),
        )

    @jax.jit
    def run(net, adapter, *given):
        tokens = adapter.image_proj(embedding, features, 0.7)
        return net(*given, adapter=adapter, id_tokens=tokens, scale=scale).noise

    assert relative_error(run(ours, adapter, *given), to_nhwc(expected)) <= 1e-4


def test_gradients_of_adapter_and_shadingnet_equal_torch(adapter):
    theirs, ours = test_unet.pair(TINY)
    published = Published(theirs, adapter, 0.7, s_scale=0.7)
    torch_control, control = test_shadingnet.pair(TINY)
    given, (embedding, features) = test_unet.inputs(TINY), identity()
    shading = jnp.abs(test_unet.normal(2, 128, 128, 3, seed=5))
    target = test_unet.normal(2, 16, 16, 4, seed=6)

    torch_given = test_unet.torch_inputs(*given)
    torch_identity = [torch.tensor(np.array(x)) for x in (embedding, features)]
    published.projector.clip_embeds = torch_identity[1][:, None]
    tokens = published.projector(torch_identity[0])
    down, mid = torch_control(
        torch_given[0], torch_given[1], tokens, to_nchw(shading), 0.5, return_dict=False
    )
    predicted = published(
        *torch_given,
        *torch_identity,
        down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
    )
    loss = torch.nn.functional.mse_loss(predicted, to_nchw(target))
    loss.backward()

    graph, weights = nnx.split((adapter, control))

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(weights):
        adapter, control = nnx.merge(graph, weights)
        tokens = adapter.image_proj(embedding, features, 0.7)
        residuals = control(given[0], given[1], tokens, shading, 0.5)
        predicted = ours(
            *given, adapter=adapter, id_tokens=tokens, scale=0.7, residuals=residuals
        ).noise
        return jnp.mean((predicted - target) ** 2)

    value, gradients = value_and_grad(weights)
    adapter_gradient, control_gradient = nnx.merge(graph, gradients)
    assert relative_error(value, loss) <= 1e-5
    actual = dict(engine.dump(adapter_gradient, adapter_table.TABLE))
    expected = published.gradients()
    assert actual.keys() == expected.keys()
    table = shadingnet_table.table(control.config)
    actual |= {f"shadingnet.{k}": v for k, v in engine.dump(control_gradient, table)}
    expected |= {f"shadingnet.{k}": v.grad for k, v in torch_control.named_parameters()}
    assert actual.keys() == expected.keys()
    errors = {key: relative_error(actual[key], expected[key]) for key in actual}
    assert max(errors.values()) <= 1e-3, sorted(errors.items(), key=lambda e: -e[1])[:5]


@pytest.mark.parametrize(("start", "scale"), [("published", 0.0), ("quick", 1.0)])
def test_nothing_learnt_is_the_base_to_the_bit(start, scale):
    _, ours = test_unet.pair(TINY)
    fields = {**SMALL, "start": start}
    fresh = jax.jit(lambda net: IdAdapter.from_unet(net, rngs=nnx.Rngs(0), **fields))(ours)
    given, (embedding, features) = test_unet.inputs(TINY), identity()

    @jax.jit
    def base(net, *given):
        return net(*given).noise

    @jax.jit
    def adapted(net, adapter, *given):
        tokens = adapter.image_proj(embedding, features)
        return net(*given, adapter=adapter, id_tokens=tokens, scale=scale).noise

    np.testing.assert_array_equal(adapted(ours, fresh, *given), base(ours, *given))


def test_a_fresh_adapter_is_as_published():
    _, ours = test_unet.pair(TINY)
    fields = {**SMALL, "rank": 64}
    fresh = jax.jit(lambda net: IdAdapter.from_unet(net, rngs=nnx.Rngs(0), **fields))(ours)
    up, cross = fresh.layers[29], ours.up_blocks[3].attentions[2].transformer_blocks[0].attn2
    np.testing.assert_array_equal(up.to_k_ip.kernel, cross.to_k.kernel)
    np.testing.assert_array_equal(up.to_v_ip.kernel, cross.to_v.kernel)
    assert not hasattr(fresh.layers[28], "to_k_ip")
    for layer in fresh.layers:
        for name in ("to_q_lora", "to_k_lora", "to_v_lora", "to_out_lora"):
            assert not np.any(getattr(layer, name).up.kernel)
    down = np.concatenate([np.ravel(layer.to_q_lora.down.kernel) for layer in fresh.layers])
    assert abs(down.std() * 64 - 1) < 0.02


def test_the_sizes_of_the_published_adapter():
    config = IdAdapterConfig.for_unet(UNetConfig.sd15())
    adapter = abstract(IdAdapter, config)
    shapes = engine.torch_shapes(adapter, adapter_table.TABLE)

    def count(top):
        sizes = [int(np.prod(shape)) for key, shape in shapes.items() if key.startswith(top)]
        return len(sizes), sum(sizes)

    assert count("image_proj.") == (56, 33_581_568)
    assert count("ip_adapter.") == (288, 44_679_168)


def test_the_lora_alone_needs_no_tokens(adapter):
    _, ours = test_unet.pair(TINY)
    given = test_unet.inputs(TINY)
    run = jax.jit(lambda net, **adapted: net(*given, **adapted).noise)
    alone = run(ours, adapter=adapter)
    silent = run(ours, adapter=adapter, id_tokens=jnp.ones((2, 4, 32)), scale=0.0)
    np.testing.assert_allclose(alone, silent, rtol=1e-5, atol=1e-5)
    assert relative_error(alone, run(ours)) > 1e-2


def test_mixing_identities():
    embeddings = jnp.eye(3)[:, None, :]
    features = test_unet.normal(3, 1, 5, 7)
    embedding, feature = mix_identities(embeddings, features, jnp.array([3.0, 4.0, 0.0]))
    np.testing.assert_allclose(embedding, [[0.6, 0.8, 0.0]], rtol=1e-6)
    expected = (3 * features[0] + 4 * features[1]) / 7
    np.testing.assert_allclose(feature, expected, rtol=1e-5, atol=1e-6)
    alone, _ = mix_identities(embeddings, features, jnp.array([0.0, 2.0, 0.0]))
    np.testing.assert_allclose(alone, embeddings[1], atol=1e-6)
    with pytest.raises(ValueError, match="got 3, 3 and 2"):
        mix_identities(embeddings, features, jnp.ones(2))
