"""`FaceMakeUp`: a model folder that makes pictures of faces.

    model = FaceMakeUp.from_pretrained("model")
    face = model.prepare("face.jpg", light="neutral")
    made = model.generate("a woman with red hair", face, num_images=4)
    made.images  # (4, s, s, 3), uint8

Pictures are drawn on all devices of this machine, a share of them on each. A program is compiled
once per number and size of pictures: steps, sampler, scales and prompts are its arguments. What is
compiled anew is a channel switched off by a scale of 0, since then there is nothing to compute.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, Unpack

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from convert.folder import STABLE_DIFFUSION, Model
from fmv2.conditions import Change, Conditions, mix
from fmv2.denoise import phrase_maps
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.drawing import Drawing, Edit, Told, initial_noise
from fmv2.errors import UserError
from fmv2.fingerprint import fingerprint
from fmv2.loading import read_model
from fmv2.nets import Nets
from fmv2.pictures import Picture, read_mask, read_picture
from fmv2.preparation import Preparation
from fmv2.prompts import Prompts
from fmv2.settings import Knobs, Settings

Dtype = Literal["float32", "bfloat16", "float16"]
Person = Conditions | Sequence[tuple[Conditions, float]] | None
"""Of one picture: a face; several faces with their weights, see `fmv2.conditions.mix`; or nobody,
and then the base model draws."""


class Pictures(NamedTuple):
    """What was made, picture by picture: all of the first prompt, then those of the second."""

    images: UInt8[np.ndarray, "n s s 3"]
    """RGB."""
    attention: tuple[Mapping[str, Float[np.ndarray, "g g"]], ...]
    """Where each picture looks for each phrase that was asked for, the largest of each map 1."""


class FaceMakeUp:
    """Stable Diffusion that keeps an identity and obeys a shading map."""

    def __init__(self, model: Model):
        """
        Args:
          model: unet, vae and text_encoder are there at least.
        Raises:
          UserError: one of them is not, or the tokenizer is not CLIP's.
        """
        if missing := [name for name in STABLE_DIFFUSION if getattr(model, name) is None]:
            raise UserError(f"the model lacks {', '.join(missing)}, without which nothing is drawn")
        nets = model.nets()
        # Who asks for float32 gets what PyTorch draws, see the export's figure in the quickstart.
        exact = nets["unet"].conv_in.kernel.dtype == jnp.float32
        self.nets = Nets(nets, precision="highest" if exact else None)
        self.prompts = Prompts(model.tokenizer)
        self.schedule = NoiseSchedule.from_config(model.scheduler)
        self._prepare = Preparation(self.nets, model.head)
        self._draw = Drawing(self.nets, self.schedule)
        self._cell = self.nets["vae"].config.downscale
        self.default_size: int = self.nets["unet"].config.sample_size * self._cell
        """Side in pixels of the pictures that the U-Net was trained on."""

    @classmethod
    def from_pretrained(cls, name: str | Path, *, dtype: Dtype = "float32") -> Self:
        """Reads a model folder.

        Args:
          name: the folder, or a repository OWNER/NAME of the Hugging Face hub.
          dtype: of weights and arithmetic; nets with batch norms keep float32.
        Raises:
          UserError: it is not there, no model, damaged, or lacks what every picture needs.
        """
        return cls(read_model(name, jnp.dtype(dtype)))

    def prepare(
        self,
        face_image: Picture | Sequence[Picture],
        shading_image: Picture | Sequence[Picture | None] | None = None,
        *,
        expression: Change = None,
        pose: Change = None,
        light: Change = None,
        landmarks: Any = None,
        size: int | None = None,
    ) -> Any:
        """What pictures are told of a face, which is in the middle of its picture.

        The centred square is looked at. Where no shading image is given, the coefficient encoder
        tells the 3D head in it, and the head is rendered.

        Args:
          face_image: a file, a Pillow picture or an array; or a list of them.
          shading_image: a shading map to obey, in place of a rendered one; one for each of a list,
            or one for all.
          expression: what becomes of it: "neutral", numbers, or another face's coefficients, see
            `fmv2.conditions.change`.
          pose: of the head; likewise.
          light: likewise.
          landmarks: ArcFace's five points in the face's picture, (5, 2), where they are known
            better; (n, 5, 2) for a list.
          size: side in pixels of the pictures to be made; `default_size` where it is None.
        Returns:
          Conditions; a list of them for a list.
        Raises:
          UserError: all that is wrong with the pictures, and all that the model lacks for this.
        """
        size = self.default_size if size is None else size
        many = isinstance(face_image, list | tuple)
        faces: list[Any] = list(face_image) if many else [face_image]
        shadings = _for_each(shading_image, len(faces), "shading_image")
        points = list(landmarks) if many and landmarks is not None else [landmarks] * len(faces)
        faults = self.size_faults(size)
        if len(points) != len(faces):
            faults.append(f"{len(points)} landmarks for {len(faces)} faces: give five points each")
        made = self._prepare(
            faces,
            shadings,
            points,
            size=size,
            changes=(expression, pose, light),
            faults=faults,
        )
        return made if many else made[0]

    def generate(
        self,
        prompt: str | Sequence[str],
        conditions: Person | Sequence[Person] = None,
        *,
        negative_prompt: str = "",
        num_images: int = 1,
        size: int | None = None,
        latents: Float[np.ndarray, "n h w c"] | None = None,
        attention: Sequence[str] = (),
        progress: Callable[[int, int], None] | None = None,
        at_once: int = 8,
        **knobs: Unpack[Knobs],
    ) -> Pictures:
        """Draws pictures of prompts.

        A prompt that is longer than the text encoder reads gives a warning that says where it ends.

        Args:
          prompt: a text, or a list.
          conditions: of all pictures; or a list, one for each prompt. A list and one prompt make a
            picture of it for each.
          negative_prompt: what guidance leads away from.
          num_images: of each prompt.
          size: side in pixels; by default that of the conditions' shading.
          latents: the noise to begin with, standard normal, in place of the seed's.
          attention: phrases of the prompt; where the pictures look for them is returned.
          progress: told the steps done, and how many there are.
          at_once: most pictures on one device at a time.
          knobs: the fields of `fmv2.settings.Settings`.
        Raises:
          UserError: all that is out of range or does not go together.
        """
        settings = Settings(**knobs)
        told = self._tell(
            prompt, conditions, negative_prompt, num_images, size, attention, settings
        )
        noise = self._noise(told, latents, settings)
        return self._made(told, settings, noise, at_once, progress)

    def edit(
        self,
        image: Picture,
        mask: Picture,
        prompt: str,
        conditions: Person = None,
        *,
        negative_prompt: str = "",
        num_images: int = 1,
        attention: Sequence[str] = (),
        progress: Callable[[int, int], None] | None = None,
        at_once: int = 8,
        **knobs: Unpack[Knobs],
    ) -> Pictures:
        """Draws a region of a picture anew; where the mask is black, not a bit of it changes.

        After each step, latents without a masked pixel become the picture's own at that step's
        noise level; in the end, pixels go over by the mask.

        Args:
          image: square, of a side that `generate` would take.
          mask: of the same size: white is drawn anew, grey blends.
          conditions: of that size.
          knobs: and all others, as of `generate`.
        Raises:
          UserError: as `generate`; or image and mask are not such.
        """
        settings = Settings(**knobs)
        source, region, faults = read_picture(image), read_mask(mask), []
        size = len(source)
        if source.shape[1] != size:
            faults.append(f"the image is {source.shape[1]}×{size} pixels: expected a square")
        if region.shape != source.shape[:2]:
            faults.append(
                f"the mask is {region.shape[1]}×{len(region)} pixels: expected the image's"
            )
        if faults:
            raise UserError("; ".join(faults))
        told = self._tell(
            prompt, conditions, negative_prompt, num_images, size, attention, settings
        )
        noise = self._noise(told, None, settings)
        drawn = self._made(told, settings, noise, at_once, progress, Edit(source, region))
        weight = region[None, :, :, None].astype(np.float32)
        blend = np.round(weight * drawn.images + (1 - weight) * source[None]).astype(np.uint8)
        return drawn._replace(images=blend)

    @cached_property
    def digest(self) -> str:
        """Of all weights, as they are here."""
        return fingerprint(dict(self.nets))

    def size_faults(self, size: int) -> list[str]:
        """What is wrong with a side in pixels, if anything."""
        cell = self._cell
        if size >= cell and size % cell == 0:
            return []
        near = max(round(size / cell), 1) * cell
        return [f"size={size}: expected a multiple of {cell}, such as {near}"]

    def _tell(
        self, prompt, conditions, negative_prompt, num_images, size, attention, settings
    ) -> Told:
        """What each picture is told; arguments as of `generate`."""
        faults, people = settings.faults(), _people(conditions)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        prompts = prompts * len(people) if len(prompts) == 1 else prompts
        people = people * len(prompts) if len(people) == 1 else people
        if not prompts or len(prompts) != len(people):
            faults.append(
                f"{len(prompts)} prompts and {len(people)} conditions: expected as many, or one"
            )
        if num_images < 1:
            faults.append(f"num_images={num_images}: expected 1 or more")
        if not faults:
            try:
                settings.table(self.schedule)
            except ValueError as error:  # more steps than the schedule has
                faults.append(f"steps={settings.steps}: {error}")
        faces: list[Conditions] = []
        for person in people:
            try:
                faces += [] if person is None else [_one(person)]
            except UserError as error:
                faults.append(str(error))
        if len(faces) not in (0, len(people)):
            faults.append("conditions for some pictures alone: give them for all, or for none")
        if size is None:
            size = len(faces[0].shading) if faces else self.default_size
        faults += self.size_faults(size)
        faults += self._face_faults(faces, size, settings)
        masks = np.zeros((len(prompts), len(attention), 77), bool)
        for i, text in enumerate(prompts):
            try:
                masks[i] = self.prompts.phrases(text, attention)
            except UserError as error:
                faults.append(str(error))
        if faults:
            raise UserError("; ".join(dict.fromkeys(faults)))
        for text in dict.fromkeys((*prompts, negative_prompt)):
            if cut := self.prompts.cut(text):
                warnings.warn(cut, stacklevel=3)
        ids = self.prompts.ids([negative_prompt, *prompts])
        told = Told(
            ids=np.stack([np.broadcast_to(ids[:1], ids[1:].shape), ids[1:]], axis=1),
            phrases=masks,
            names=tuple(attention),
            size=size,
            faces=faces,
        )
        return told.each(num_images)

    def _face_faults(self, faces: Sequence[Conditions], size: int, settings: Settings) -> list[str]:
        """What the model or the conditions lack for the channels that are on."""
        needed = {
            "adapter": settings.id_scale or settings.shading_scale,
            "image_encoder": settings.id_scale or settings.shading_scale,
            "shadingnet": settings.shading_scale,
        }
        faults = [
            f"the model has no {name}: add it with fmv2 convert from-diffusers, or set"
            f" {'shading_scale=0' if name == 'shadingnet' else 'id_scale=0 and shading_scale=0'}"
            for name, on in needed.items()
            if faces and on and name not in self.nets
        ]
        sides = {face.shading.shape[:2] for face in faces}
        if settings.shading_scale and sides - {(size, size)}:
            one = next(iter(sides - {(size, size)}))
            faults.append(
                f"size={size}, but the conditions' shading is {one[1]}×{one[0]}: prepare them with"
                f" size={size}"
            )
        return faults

    def _noise(self, told: Told, latents, settings: Settings) -> Float[np.ndarray, "n h w c"]:
        shape = (
            told.size // self._cell,
            told.size // self._cell,
            self.nets["unet"].config.in_channels,
        )
        if latents is None:
            return np.asarray(initial_noise(settings.seed, len(told.ids), shape))
        if np.shape(latents) != (len(told.ids), *shape):
            raise UserError(
                f"latents are {np.shape(latents)}: expected {(len(told.ids), *shape)}, the noise of"
                " each picture"
            )
        return np.asarray(latents, np.float32)

    def _made(self, told: Told, settings, noise, at_once, progress, edit=None) -> Pictures:
        if at_once < 1:
            raise UserError(f"at_once={at_once}: expected 1 or more")
        images, seen = self._draw(told, settings, noise, at_once, progress or _silent, edit)
        attention: tuple[Mapping[str, Any], ...] = ({},) * len(images)
        if told.names:
            maps = np.asarray(phrase_maps(jnp.asarray(seen), jnp.asarray(told.phrases)))
            attention = tuple(dict(zip(told.names, own, strict=True)) for own in maps)
        return Pictures(images, attention)


def _silent(done: int, total: int) -> None:
    pass


def _people(conditions: Any) -> list[Person]:
    """One for each prompt, or one for all. What begins with a weighted face is one picture's."""
    if not isinstance(conditions, list | tuple):
        return [conditions]
    if conditions and isinstance(conditions[0], tuple) and not isinstance(conditions[0][0], tuple):
        return [conditions]
    return list(conditions)


def _one(person: Any) -> Conditions:
    return person if isinstance(person, Conditions) else mix(person)


def _for_each(given: Any, count: int, name: str) -> list[Any]:
    if not isinstance(given, list | tuple):
        return [given] * count
    if len(given) != count:
        raise UserError(f"{len(given)} of {name} for {count} faces: expected as many, or one")
    return list(given)
