"""The published objective in plain PyTorch, from diffusers' nets: what ours is held against.

Written for reading, with a loop over all that it averages.
"""

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

Tensors = dict[str, torch.Tensor]

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Published:
    """Face-MakeUpV2's training loss: the noise's, and a thousandth of the attention maps'.

    Args:
      adapter: projector and attention layers by the names of IP-Adapter-FaceID-PlusV2's files.
      layers: the U-Net's attention layers by their paths, in the order of those files.
    """

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        image_encoder: CLIPVisionModelWithProjection,
        shadingnet: ControlNetModel,
        adapter: Tensors,
        layers: list[str],
        scheduler: DDPMScheduler,
    ):
        for frozen in (unet, vae, text_encoder, image_encoder):
            frozen.requires_grad_(False)
        self.unet, self.vae, self.scheduler = unet, vae, scheduler
        self.text_encoder, self.image_encoder = text_encoder, image_encoder
        self.shadingnet = shadingnet
        self.adapter = {k: v.clone().requires_grad_() for k, v in adapter.items()}
        self.processors = {
            f"{path}.processor": Processor(_under(self.adapter, f"ip_adapter.{n}"))
            for n, path in enumerate(layers)
        }
        unet.set_attn_processor(dict(self.processors))

    def trainables(self) -> Tensors:
        """Every tensor that learns, by its name in the files."""
        control = {f"shadingnet.{k}": v for k, v in self.shadingnet.named_parameters()}
        return {**self.adapter, **control}

    def losses(
        self,
        batch: Mapping[str, torch.Tensor],
        latents_noise: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
    ) -> Tensors:
        """The loss and its two terms.

        Args:
          batch: image and shading (b, h, w, 3) and face in bytes; input_ids; face_id; token_mask
            (b, k, 77); masks (b, k, h, w) of 0 and 1; mask_valid (b, k); face_dropped (b).
          latents_noise: (b, 4, h/8, w/8), standard normal, for the VAE's latents.
          noise: of that shape, what is added to them.
          timesteps: (b,).
        """
        image, face, shading = (
            batch[name].permute(0, 3, 1, 2).float() / 255 for name in ("image", "face", "shading")
        )
        posterior = self.vae.encode(2 * image - 1).latent_dist
        latents = posterior.mean + posterior.std * latents_noise
        latents = latents * self.vae.config.scaling_factor
        noisy = self.scheduler.add_noise(latents, noise, timesteps)

        mean, std = (torch.tensor(x)[:, None, None] for x in (_CLIP_MEAN, _CLIP_STD))
        pixels = (face - mean) / std
        pixels[batch["face_dropped"]] = 0
        features = self.image_encoder(pixels, output_hidden_states=True).hidden_states[-2]
        tokens = id_tokens(_under(self.adapter, "image_proj"), batch["face_id"], features)
        context = self.text_encoder(batch["input_ids"]).last_hidden_state
        down, mid = self.shadingnet(noisy, timesteps, tokens, shading, return_dict=False)
        predicted = self.unet(
            noisy,
            timesteps,
            context,
            cross_attention_kwargs={"id_tokens": tokens},
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample

        noise_term = F.mse_loss(predicted, noise)
        map_term = self.map_loss(batch)
        return {"loss": noise_term + 1e-3 * map_term, "noise": noise_term, "map": map_term}

    def map_loss(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Of the text's attention where a map has a sixteenth of the picture's side."""
        side = batch["image"].shape[1] // 16
        total = torch.zeros(())
        for processor in self.processors.values():
            seen = processor.text_attention
            if seen is None or seen.shape[2] != side * side:
                continue
            of_masks = []
            for sample, k in batch["mask_valid"].nonzero().tolist():
                mask = batch["masks"][sample, k].float()[None, None]
                mask = F.interpolate(mask, (side, side), mode="bilinear", align_corners=False)
                region = (mask > 0.5).float().reshape(1, -1, 1)
                columns = seen[sample][:, :, batch["token_mask"][sample, k]]
                columns = torch.cat([columns, columns.mean(2, keepdim=True)], 2)
                of_masks.append(((columns - region) ** 2).mean())
            total = total + torch.stack(of_masks).mean()
        return total


class Processor:
    """IP-Adapter's decoupled attention with a LoRA on every projection; it keeps the maps."""

    def __init__(self, weights: Tensors):
        self.weights = weights
        self.text_attention: torch.Tensor | None = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, id_tokens=None, **_):
        crosses = encoder_hidden_states is not None
        context = encoder_hidden_states if crosses else hidden_states
        query, key, value = (
            attn.head_to_batch_dim(self.adapted(linear, name, x))
            for linear, name, x in (
                (attn.to_q, "q", hidden_states),
                (attn.to_k, "k", context),
                (attn.to_v, "v", context),
            )
        )
        probabilities = attn.get_attention_scores(query, key)
        y = probabilities @ value
        if crosses:
            self.text_attention = probabilities.unflatten(0, (-1, attn.heads))
            key, value = (
                attn.head_to_batch_dim(F.linear(id_tokens, self.weights[f"to_{name}_ip.weight"]))
                for name in "kv"
            )
            y = y + attn.get_attention_scores(query, key) @ value
        return self.adapted(attn.to_out[0], "out", attn.batch_to_head_dim(y))

    def adapted(self, linear, name, x):
        down, up = (self.weights[f"to_{name}_lora.{end}.weight"] for end in ("down", "up"))
        return linear(x) + F.linear(F.linear(x, down), up)


def id_tokens(weights: Tensors, embedding: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The four tokens of an identity: the projected embedding, and what a resampler adds to it."""

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def heads(x):
        return x.unflatten(-1, (-1, 64)).transpose(1, 2)

    x = linear(F.gelu(linear(embedding, "proj.0")), "proj.2")
    x = norm(x.unflatten(1, (4, -1)), "norm")
    features, latents = linear(features, "perceiver_resampler.proj_in"), x
    for layer in range(4):
        attend, feed = (f"perceiver_resampler.layers.{layer}.{part}" for part in (0, 1))
        given, own = norm(features, f"{attend}.norm1"), norm(latents, f"{attend}.norm2")
        query = linear(own, f"{attend}.to_q")
        key, value = linear(torch.cat([given, own], 1), f"{attend}.to_kv").chunk(2, -1)
        scores = heads(query) @ heads(key).transpose(2, 3) / 8
        y = (scores.softmax(-1) @ heads(value)).transpose(1, 2).flatten(2)
        latents = latents + linear(y, f"{attend}.to_out")
        hidden = F.gelu(linear(norm(latents, f"{feed}.0"), f"{feed}.1"))
        latents = latents + linear(hidden, f"{feed}.3")
    latents = linear(latents, "perceiver_resampler.proj_out")
    return x + norm(latents, "perceiver_resampler.norm_out")


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {
        k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")
    }
