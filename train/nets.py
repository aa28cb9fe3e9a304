"""The nets of a run: which, of what shape, in which precision, and with whose weights."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from convert import engine
from convert.components import COMPONENTS, plan
from convert.folder import Assembly, assemble
from convert.kinds import EMBEDDED
from fmv2.compiling import options_for_once
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.errors import UserError
from fmv2.models.abstract import abstract
from fmv2.models.arcface import ArcFaceConfig
from fmv2.models.clip_text import CLIPTextConfig
from fmv2.models.clip_vision import CLIPVisionConfig
from fmv2.models.id_adapter import IdAdapter
from fmv2.models.shadingnet import ShadingNet
from fmv2.models.unet import UNetConfig
from fmv2.models.vae import AutoencoderKLConfig
from fmv2.parallel import shardings
from train.config import TrainConfig
from train.heads import net_class
from train.objectives.face_makeup import FaceMakeUp
from train.step import Objective

Nets = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Shapes:
    """A model without weights: the config of each net, by component, and the noise schedule."""

    configs: Mapping[str, Any]
    schedule: NoiseSchedule

    @classmethod
    def sd15(cls) -> "Shapes":
        """Stable Diffusion 1.5 with ViT-H/14 and ArcFace's IResNet-100."""
        return cls(
            {
                "unet": UNetConfig.sd15(),
                "vae": AutoencoderKLConfig.sd15(),
                "text_encoder": CLIPTextConfig.sd15(),
                "image_encoder": CLIPVisionConfig.vit_h14(),
                "face_encoder": ArcFaceConfig.r100(),
            },
            NoiseSchedule(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        )

    @classmethod
    def of(cls, assembly: Assembly | None) -> "Shapes":
        """Of a base folder, of which nothing but names and shapes is read; of none, no nets.

        Raises:
          UserError: what does not fit, all of it.
        """
        if assembly is None:
            return cls({}, NoiseSchedule.from_config(EMBEDDED.scheduler))
        configs = {name: made.net.config for name, made in plan(assembly.parts).items()}
        return cls(configs, NoiseSchedule.from_config(assembly.scheduler))

    def completed(self, objective: Objective) -> "Shapes":
        """With the nets that the objective begins afresh."""
        configs = {**objective.fresh(self.configs), **self.configs}
        return dataclasses.replace(self, configs=configs)


def describe(config: TrainConfig, shapes: Shapes) -> tuple[Nets, Nets]:
    """What the run trains and what it reads, as nets without values.

    Args:
      shapes: completed by the run's objective.
    Raises:
      UserError: the model lacks nets that the objective needs.
    """
    objective = config.objective
    needed = (*objective.trained, *objective.frozen)
    if missing := [name for name in needed if name not in shapes.configs]:
        raise UserError(
            f"{config.base}: lacks {', '.join(missing)}, which this objective needs: add them with "
            "fmv2 convert from-diffusers"
        )

    def made(name: str, trained: bool):
        return abstract(net_class(name), shapes.configs[name], **_options(config, name, trained))

    trained = {name: made(name, True) for name in objective.trained}
    return trained, {name: made(name, False) for name in objective.frozen}


def load(
    config: TrainConfig,
    assembly: Assembly | None,
    mesh: Mesh,
    on_read: Callable[[int], None] = lambda size: None,
) -> tuple[Nets, Nets]:
    """The same with weights, each straight into its sharding.

    Trained nets that the base lacks begin afresh.

    Args:
      assembly: the base; None for an objective that reads none.
      on_read: told the bytes of each net as it is read.
    Raises:
      UserError: what the base lacks or does not fit.
    """
    trained, frozen = describe(config, Shapes.of(assembly).completed(config.objective))
    parts = {} if assembly is None else assembly.parts

    def read(name: str, net: Any):
        by_path = {
            ".".join(map(str, path)): placed
            for path, placed in nnx.to_flat_state(shardings(nnx.state(net), mesh))
        }
        loaded = engine.load(
            net,
            parts[name].tensors,
            COMPONENTS[name].table(net.config),
            name=name,
            dtype=_weight_dtype(config, name, name in trained),
            sharding=lambda path: by_path[path].get_value(),
        )
        on_read(sum(x.nbytes for x in jax.tree.leaves(loaded)))
        return loaded

    frozen = {name: read(name, net) for name, net in frozen.items()}
    trained = {
        name: read(name, net) if name in parts else _fresh(name, net, frozen, config, mesh)
        for name, net in trained.items()
    }
    return trained, frozen


def open_base(path: Path) -> Assembly:
    """The run's base folder, whose names and shapes alone have been read.

    Raises:
      UserError: it is not there, or no model folder.
    """
    if not path.exists():
        raise UserError(f"{path}: no such model folder: make one with fmv2 convert from-diffusers")
    return assemble([path])


def _fresh(name: str, net: Any, frozen: Nets, config: TrainConfig, mesh: Mesh) -> Any:
    """Made under jit, so that no weight exists that another replaces, nor on another device."""
    graph, state = nnx.split(net)
    options = _options(config, name, trained=True)

    def make(unet):
        rngs = nnx.Rngs(config.seed)
        objective = config.objective
        start = {"start": objective.start} if isinstance(objective, FaceMakeUp) else {}
        if name == "adapter":
            # What it does not say of itself is the U-Net's.
            own = {f: getattr(net.config, f) for f in ("id_dim", "face_dim", "rank")}
            made = IdAdapter.from_unet(unet, rngs=rngs, **start, **own, **options)
        elif name == "shadingnet":
            made = ShadingNet.from_unet(unet, rngs=rngs, **start, **options)
        else:
            made = net_class(name)(net.config, rngs=rngs, **options)
        return jax.tree.leaves(nnx.state(made))

    placed = jax.tree.leaves(shardings(state, mesh))
    made = jax.jit(make, out_shardings=placed, compiler_options=options_for_once())
    leaves = made(frozen.get("unet"))
    return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), leaves))


def _options(config: TrainConfig, name: str, trained: bool) -> dict[str, Any]:
    """What a net's class is made with."""
    options: dict[str, Any] = {
        "dtype": jnp.dtype(config.compute),
        "param_dtype": _weight_dtype(config, name, trained),
    }
    if name in ("unet", "shadingnet"):
        options |= {"attention": config.attention, "remat": config.remat}
    return options


def _weight_dtype(config: TrainConfig, name: str, trained: bool) -> jnp.dtype:
    # Masters; and the running statistics of batch norms are worth their precision.
    exact = trained or name in ("face_encoder", "coefficient_encoder")
    return jnp.dtype(jnp.float32 if exact else config.compute)
