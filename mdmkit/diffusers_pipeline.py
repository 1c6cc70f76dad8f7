"""A model as a pipeline of diffusers: its folder layout and its call around our networks and our sampling.

    pipeline = load_pipeline("models/mine-diffusers")
    picture = pipeline("a red circle", generator=torch.Generator().manual_seed(7)).images[0]

or, without a line of ours, `DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder,
trust_remote_code=True)`. Each component's config is a table of the recipe, so that a component of a plugin
travels too, where that plugin is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from mdmkit import assemble, torchvision_ops
from mdmkit.errors import MdmkitError, WrongInput
from mdmkit.evaluate.grid import to_uint8
from mdmkit.plugins import Registry, load_registry
from mdmkit.recipe.options import Use
from mdmkit.recipe.problems import Wrong, format_path
from mdmkit.recipe.schema import Data, Diffusion, Model, Recipe, Sample
from mdmkit.recipe.structure import Structurer
from mdmkit.sampling.draw import draw
from mdmkit.train.parallel import autocast

if find_spec("diffusers") is None:
    raise MdmkitError("a pipeline of diffusers needs diffusers; pip install 'mdmkit[diffusers]'")
torchvision_ops.declare()  # diffusers imports transformers, which imports torchvision

# ruff: noqa: E402
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL import Image

__all__ = ["MatryoshkaPipeline", "NestedUNetModel", "PyramidSchedule", "TextEncoderModel", "load_pipeline"]

Table = dict[str, Any]
OUTPUTS = ("pil", "np", "pt")
TABLES: dict[str, type] = {"model": Model, "diffusion": Diffusion, "sample": Sample}


@cache
def registry() -> Registry:
    """The components that are installed."""
    return load_registry()


def recipe_of(text: Mapping[str, Any] | None = None, **tables: Mapping[str, Any]) -> Recipe:
    """A recipe of some of its tables; the others are never looked at.

    Raises:
        WrongInput: a table is not as a recipe has it, or names a component that is not installed.
    """
    structurer = Structurer(registry())
    parts: dict[str, Any] = {"model": Model(levels=())}
    name = "text"
    try:
        parts["text"] = None if text is None else structurer.use(dict(text), "text_encoder")
        for name, table in tables.items():
            parts[name] = structurer.table(dict(table), TABLES[name])
    except Wrong as error:
        problem = error.problems[0]
        raise WrongInput(f"{format_path((name, *problem.path))}: {problem.message}") from error
    return Recipe(format=1, data=Data(source=Use("none")), **parts)


class NestedUNetModel(ModelMixin, ConfigMixin):
    """A nest as a model of diffusers, under our parameter names.

    `model` is the recipe's table, `cond_dim` the width of the text features (None: it reads none),
    `precision` that of the network where the device is made for it. `lift` as of `NestedUNet`; called as
    that is.
    """

    @register_to_config
    def __init__(
        self,
        model: Table,
        cond_dim: int | None = None,
        precision: str = "fp32",
        lift: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        text = None if cond_dim is None else {"use": "cached", "width": cond_dim}
        device = torch.get_default_device()
        nest = assemble.nest(recipe_of(model=model, text=text), registry(), device=device)
        nest.lift = None if lift is None else tuple(lift)
        self.levels = nest.levels
        self._nest = (nest,)  # in a tuple: its parameters are those of `levels`, without another prefix

    @property
    def nest(self) -> torch.nn.Module:
        """The nest itself, whose levels are this model's."""
        return self._nest[0]

    def forward(self, *args: Any, **given: Any) -> tuple[Tensor, ...]:
        return self.nest(*args, **given)


class TextEncoderModel(ModelMixin, ConfigMixin):
    """A text encoder as a model of diffusers; `settings` is the recipe's [text].

    A pretrained one has no weights of its own here: it is named by its hub id, or by a folder beside its
    config, which came along because it was a local one.
    """

    @register_to_config
    def __init__(self, settings: Table) -> None:
        super().__init__()
        device = torch.get_default_device()
        self.text = assemble.text_encoder(recipe_of(settings), registry(), device=device)

    @property
    def trainable(self) -> bool:
        """Whether it was trained with the model, so that its weights stand here."""
        return bool(getattr(self.text, "trainable", False))

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        assert self.text is not None
        return self.text(captions)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **given: Any) -> TextEncoderModel:
        """The encoder of a local folder, as diffusers loads it."""
        folder = Path(pretrained_model_name_or_path, given.get("subfolder") or "")
        if (folder / "diffusion_pytorch_model.safetensors").is_file():
            return super().from_pretrained(pretrained_model_name_or_path, **given)
        config: Any = cls.load_config(folder)
        settings = dict(config["settings"])
        if "model" in settings and (folder / settings["model"]).is_dir():
            settings["model"] = str(folder / settings["model"])
        return cls(settings=settings).eval()


class PyramidSchedule(SchedulerMixin, ConfigMixin):
    """How noise and picture mix over time, and how pictures are drawn: two tables of the recipe.

    It holds no state and makes no steps: those are `mdmkit.sampling`'s, over all levels at once.
    """

    order = 1

    @register_to_config
    def __init__(self, diffusion: Table, sample: Table) -> None:
        recipe_of(diffusion=diffusion, sample=sample)  # what is wrong is known here


class MatryoshkaPipeline(DiffusionPipeline):
    """Draws pictures for prompts: those that `mdmkit sample` draws with the same model and the same seed."""

    _optional_components = ["text_encoder"]  # noqa: RUF012 (as diffusers declares it)

    def __init__(
        self,
        unet: NestedUNetModel,
        scheduler: PyramidSchedule,
        text_encoder: TextEncoderModel | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, text_encoder=text_encoder)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        *,
        num_images_per_prompt: int = 1,
        return_dict: bool = True,
    ) -> Any:
        """Pictures of the highest level, `num_images_per_prompt` a prompt, in `.images`.

        What is not given is as the model's recipe has it. `generator`: its `initial_seed()` is the seed of
        the first picture, and picture i has that seed + i, as in `mdmkit sample --seed`; a list has one
        generator a picture. A generator is never used up: the same one gives the same pictures again. Without
        one the seed comes from torch's own. `guidance_scale` 1 draws without guidance and evaluates no
        unconditional row; another one is the scale of classifier-free guidance, whatever else guides.
        `negative_prompt`: what guidance leads away from, one for all or one a prompt.

        `output_type`: "pil"; "np", (B, H, W, 3) in [0, 1]; "pt", (B, 3, H, W) in [0, 1].
        """
        if output_type not in OUTPUTS:
            raise ValueError(f"expected output_type to be one of {', '.join(OUTPUTS)}, got {output_type!r}")
        if self.unet.dtype != torch.float32:
            raise ValueError(
                f"expected a unet in float32, got {self.unet.dtype}; load it as it is stored, "
                "and say precision = bf16 in its config for mixed precision"
            )
        recipe = self.recipe(num_inference_steps, guidance_scale)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        captions = repeated(prompts, num_images_per_prompt)
        if self.text_encoder is None:
            self.refuse_text(captions, negative_prompt, guidance_scale)
            captions = [""] * num_images_per_prompt
        elif not captions:
            raise ValueError("expected a prompt, got none")
        negatives = self.negatives(negative_prompt, len(captions), num_images_per_prompt, recipe)
        seeds = seeds_of(generator, len(captions))
        # runs of following seeds and one negative prompt are drawn together
        rows = list(zip(range(len(captions)), seeds, negatives, strict=True))
        pictures: list[Tensor] = []
        for (_, negative), run in groupby(rows, key=lambda row: (row[1] - row[0], row[2])):
            part = list(run)
            pictures += self.drawn(recipe, [captions[i] for i, _, _ in part], negative, part[0][1])
        images = as_output(torch.stack(pictures), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def drawn(self, recipe: Recipe, captions: Sequence[str], negative: str, seed: int) -> list[Tensor]:
        """The highest level of one picture a caption, (3, H, W) in [-1, 1], drawn as `mdmkit sample` does."""
        device = self._execution_device
        with autocast(self.unet.config.precision, device):
            pyramids = draw(
                self.unet.nest,
                None if self.text_encoder is None else self.text_encoder.text,
                assemble.diffusion(recipe, registry()),
                assemble.drawing(recipe, registry(), device=device),
                resolutions=assemble.resolutions(recipe),
                captions=captions,
                negative=negative,
                seed=seed,
                batch=recipe.sample.batch,
                device=device,
            )
        return [pyramid[-1] for pyramid in pyramids]

    def recipe(self, steps: int | None = None, scale: float | None = None) -> Recipe:
        """The recipe's tables that drawing needs, with other steps and another guidance scale where given."""
        config = self.scheduler.config
        recipe = recipe_of(model=self.unet.config.model, diffusion=config.diffusion, sample=config.sample)
        sample = recipe.sample
        if steps is not None:
            if steps < 1:
                raise ValueError(f"expected num_inference_steps of at least 1, got {steps}")
            sample = attrs.evolve(sample, steps=steps)
        if scale is not None and self.text_encoder is not None:
            if scale < 0:
                raise ValueError(f"expected guidance_scale of at least 0, got {scale}")
            cfg = recipe_of(sample={"guidance": [{"use": "cfg", "scale": float(scale)}]}).sample.guidance
            others = tuple(use for use in sample.guidance if use.name != "cfg")
            at = next((i for i, use in enumerate(sample.guidance) if use.name == "cfg"), 0)
            guidance = () if scale == 1 else (*others[:at], *cfg, *others[at:])
            sample = attrs.evolve(sample, guidance=guidance)
        return attrs.evolve(recipe, sample=sample)

    def refuse_text(self, captions: Sequence[str], negative: Any, scale: float | None) -> None:
        given = {"prompt": captions, "negative_prompt": negative, "guidance_scale": scale not in (None, 1)}
        there = [name for name, value in given.items() if value]
        if there:
            raise ValueError(f"{there[0]}: the model reads no text; leave it out")

    def negatives(
        self, given: str | Sequence[str] | None, pictures: int, each: int, recipe: Recipe
    ) -> Sequence[str]:
        """What guidance leads each picture away from."""
        if given is None or isinstance(given, str):
            return [recipe.sample.negative_prompt if given is None else given] * pictures
        texts = repeated(list(given), each)
        if len(texts) != pictures:
            raise ValueError(f"expected one negative_prompt a prompt, {pictures // each}, got {len(given)}")
        return texts


def repeated(texts: Sequence[str], times: int) -> list[str]:
    """Each text `times` times in a row."""
    if times < 1:
        raise ValueError(f"expected num_images_per_prompt of at least 1, got {times}")
    return [text for text in texts for _ in range(times)]


def seeds_of(generator: torch.Generator | Sequence[torch.Generator] | None, pictures: int) -> list[int]:
    """The seed of each picture."""
    if generator is None:
        first = int(torch.randint(2**62, (1,)))
        return [first + i for i in range(pictures)]
    if isinstance(generator, torch.Generator):
        return [generator.initial_seed() + i for i in range(pictures)]
    if len(generator) != pictures:
        raise ValueError(f"expected one generator, or one a picture, {pictures}, got {len(generator)}")
    return [one.initial_seed() for one in generator]


def as_output(pictures: Tensor, output_type: str) -> Any:
    """Pictures (B, 3, H, W) in [-1, 1] as they are asked for."""
    if output_type == "pil":
        return [Image.fromarray(picture) for picture in to_uint8(pictures)]
    scaled = ((pictures + 1) / 2).clamp(0, 1)
    return scaled if output_type == "pt" else scaled.movedim(1, -1).cpu().numpy()


def load_pipeline(folder: str | Path) -> MatryoshkaPipeline:
    """The pipeline of a folder that `mdmkit export --format diffusers` wrote, on the CPU.

    Raises:
        WrongInput: there is none.
    """
    if not (Path(folder) / "model_index.json").is_file():
        raise WrongInput(
            f"{folder} holds no pipeline (model_index.json is missing); write one with: "
            "mdmkit export MODEL --format diffusers"
        )
    return MatryoshkaPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
