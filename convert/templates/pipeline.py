# type: ignore  (diffusers types its pipelines loosely)
"""Face-MakeUpV2 in PyTorch: a diffusers pipeline for the folder that this file lies in.

    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    images = pipe("a woman smiling", id_embeds=id_embeds, faces=faces, shading=shading).images

Needs diffusers, transformers and peft. It differs from the stock ControlNet pipeline in one thing:
the control net attends to the four ID tokens, in both halves of guidance, and not to the text.
"""

import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.utils import is_peft_available

ADAPTER = "face-makeup-plusv2.safetensors"


class FaceMakeUpPipeline(StableDiffusionPipeline):
    """Stable Diffusion that keeps an identity and obeys a shading map."""

    _optional_components = [*StableDiffusionPipeline._optional_components, "shadingnet"]  # noqa: RUF012
    model_cpu_offload_seq = "text_encoder->image_encoder->shadingnet->unet->vae"

    def __init__(
        self,
        vae,
        text_encoder,
        tokenizer,
        unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
        shadingnet=None,
    ):
        super().__init__(
            vae,
            text_encoder,
            tokenizer,
            unet,
            scheduler,
            safety_checker,
            feature_extractor,
            image_encoder,
            requires_safety_checker,
        )
        self.register_modules(shadingnet=shadingnet)

    def load_face_makeup(self):
        """Loads the adapter and ShadingNet; the first call does so by itself."""
        if not is_peft_available():
            raise ImportError("pip install peft: without it diffusers drops the adapter's LoRA")
        home = self.config._name_or_path
        self.load_ip_adapter(
            home, subfolder="ip_adapter", weight_name=ADAPTER, image_encoder_folder=None
        )
        # PlusV2 cannot be told from Plus by its tensors, and diffusers takes either for Plus.
        self._projector().shortcut = True
        if self.shadingnet is None:
            shadingnet = ControlNetModel.from_pretrained(
                home, subfolder="shadingnet", dtype=self.unet.dtype
            )
            self.register_modules(shadingnet=shadingnet.to(self.unet.device))

    def _projector(self):
        return self.unet.encoder_hid_proj.image_projection_layers[0]

    @torch.no_grad()
    def __call__(
        self,
        prompt,
        *,
        id_embeds,
        faces,
        shading,
        negative_prompt="",
        negative_faces=None,
        num_inference_steps=50,
        guidance_scale=7.5,
        scale=0.7,
        s_scale=0.7,
        shading_scale=0.5,
        shading_guidance=False,
        generator=None,
        latents=None,
        output_type="pil",
    ):
        """Makes one image per prompt.

        Args:
          prompt: a text, or a list of b.
          id_embeds: ArcFace embeddings of unit length, (b, 512).
          faces: the aligned faces as images, for the folder's image encoder; or that encoder's
            hidden states -2, (b, 257, 1280).
          shading: shading maps, (b, 3, H, W) in [0, 1]; their size is that of the images.
          negative_prompt: what to keep away from, a text or a list of b.
          negative_faces: hidden states of pixels that are all zero, (1, 257, 1280); needed only
            where `faces` are hidden states and guidance_scale is above 1.
          scale: of the ID attention.
          s_scale: how much of the face's structure enters beside its identity.
          shading_scale: of ShadingNet.
          shading_guidance: let guidance lead away from an image without the shading map, too.
          latents: the initial noise, (b, 4, H / 8, W / 8).
          output_type: "pil", "np", "pt" or "latent".
        Returns:
          StableDiffusionPipelineOutput, `images` in it.
        """
        if self.unet.encoder_hid_proj is None:
            self.load_face_makeup()
        device, dtype = self._execution_device, self.unet.dtype
        guided = guidance_scale > 1
        batch = 1 if isinstance(prompt, str) else len(prompt)

        text, negative_text = self.encode_prompt(
            prompt, device, 1, guided, negative_prompt=self._repeat(negative_prompt, batch)
        )
        faces, negative_faces = self._face_features(faces, negative_faces, guided)
        id_embeds = id_embeds.to(device, dtype)
        shading = shading.to(device, dtype)
        if guided:
            text = torch.cat([negative_text, text])
            faces = torch.cat([negative_faces.expand_as(faces), faces])
            id_embeds = torch.cat([torch.zeros_like(id_embeds), id_embeds])
            shading = torch.cat([shading, shading])
            if shading_guidance:
                shown = torch.tensor([0, 1], device=device, dtype=dtype).repeat_interleave(batch)
                shading_scale = shading_scale * shown[:, None, None, None]

        self.set_ip_adapter_scale(scale)
        projector = self._projector()
        projector.shortcut_scale = s_scale
        projector.clip_embeds = faces[:, None]
        id_tokens = projector(id_embeds)

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        height, width = shading.shape[-2:]
        channels = self.unet.config.in_channels
        latents = self.prepare_latents(
            batch, channels, height, width, dtype, device, generator, latents
        )
        extra = self.prepare_extra_step_kwargs(generator, 0.0)
        for t in self.progress_bar(self.scheduler.timesteps):
            inputs = self.scheduler.scale_model_input(
                torch.cat([latents, latents]) if guided else latents, t
            )
            down, mid = self.shadingnet(
                inputs,
                t,
                encoder_hidden_states=id_tokens,
                controlnet_cond=shading,
                conditioning_scale=shading_scale,
                return_dict=False,
            )
            noise = self.unet(
                inputs,
                t,
                encoder_hidden_states=text,
                added_cond_kwargs={"image_embeds": [id_embeds[:, None]]},
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
                return_dict=False,
            )[0]
            if guided:
                without, given = noise.chunk(2)
                noise = without + guidance_scale * (given - without)
            latents = self.scheduler.step(noise, t, latents, **extra, return_dict=False)[0]

        images = latents
        if output_type != "latent":
            images = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
            images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=None)

    def _face_features(self, faces, negative_faces, guided):
        """The image encoder's hidden states of the faces, and of black nothing."""
        device, dtype = self._execution_device, self.unet.dtype
        if isinstance(faces, torch.Tensor):
            if not guided:
                return faces.to(device, dtype), None
            if negative_faces is None:
                raise ValueError("guidance over faces given as hidden states needs negative_faces")
            return faces.to(device, dtype), negative_faces.to(device, dtype)
        if self.image_encoder is None:
            raise ValueError("this folder has no image_encoder/: give faces as hidden states")
        pixels = self.feature_extractor(faces, return_tensors="pt").pixel_values
        pixels = pixels.to(self.image_encoder.device, self.image_encoder.dtype)
        pixels = torch.cat([pixels, torch.zeros_like(pixels[:1])])
        hidden = self.image_encoder(pixels, output_hidden_states=True).hidden_states[-2].to(dtype)
        return hidden[:-1], hidden[-1:]

    @staticmethod
    def _repeat(text, batch):
        return [text] * batch if isinstance(text, str) and batch > 1 else text
