"""Finds and loads a pretrained encoder, and says in one line what is missing where it cannot."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mdmkit import torchvision_ops
from mdmkit.errors import MdmkitError, WrongInput

__all__ = ["Loaded", "fingerprint", "load"]

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZERS = (
    "tokenizer.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
)

SMALL = 1 << 26  # bytes; tokenizers and configurations are smaller, weights as a rule are not


class Loaded(NamedTuple):
    """A tokenizer and a frozen encoder of the transformers library."""

    tokenizer: Any
    encoder: Any


def load(
    model: str, *, revision: str | None, families: tuple[str, ...], dtype: torch.dtype, device: torch.device
) -> Loaded:
    """The encoder at a folder or hub id; `families`: the model types allowed, any where empty.

    WrongInput where it is not there or not whole, MdmkitError where the network or transformers is missing.
    """
    transformers = _transformers()
    source = _source(model)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    with _quiet(transformers), _one_line(model):
        config = transformers.AutoConfig.from_pretrained(source, **options)
        if families and config.model_type not in families:
            raise WrongInput(
                f"{model}: is of type {config.model_type}, expected one of {', '.join(families)}; "
                'take it with use = "hf"'
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        encoder, report = _encoder(
            transformers, config, source, dtype=dtype, output_loading_info=True, **options
        )
    # a pooler is no part of the features; some checkpoints leave it out
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing:
        raise WrongInput(
            f"{model}: {len(missing)} of the encoder's weights are missing, the first is {missing[0]}; "
            "download the model again, whole"
        )
    return Loaded(tokenizer, encoder.requires_grad_(False).eval().to(device))


def fingerprint(model: str, *, revision: str | None) -> str | None:
    """What tells this encoder from others of its name, without loading it; None where only loading can tell.

    Of a folder: its small files by their contents, large weights by size, time of change and first bytes. Of
    a hub id: the commit, that of `revision` in the local cache.

    WrongInput for a folder that is not there or not whole.
    """
    folder = Path(_source(model))
    if folder.is_dir():
        said = hashlib.sha256()
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            status = path.stat()
            large = status.st_size > SMALL
            said.update(f"{path.name}\n{status.st_size}\n{status.st_mtime_ns if large else ''}\n".encode())
            with open(path, "rb") as file:
                said.update(file.read(1 << 20 if large else SMALL))  # of weights, the names and shapes
        return said.hexdigest()
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return f"{model}@{revision}"
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:  # loading says what is wrong with the name
        return None
    return f"{model}@{Path(config).parent.name}" if isinstance(config, str) else None


def _encoder(transformers: Any, config: Any, source: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The part of the model that reads text, and transformers' report on its weights."""
    text = getattr(config, "text_config", config)  # CLIP: the half that reads text
    if type(text) in transformers.models.auto.modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING:
        return transformers.AutoModelForTextEncoding.from_pretrained(source, config=text, **options)
    whole, report = transformers.AutoModel.from_pretrained(source, **options)
    return (whole.get_encoder() if config.is_encoder_decoder else whole), report


def _transformers() -> Any:
    if find_spec("transformers") is None:
        raise MdmkitError("pretrained text encoders need transformers; pip install 'mdmkit[text]'")
    # captions are short, threads gain little; after them every fork of a data worker would print a warning
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torchvision_ops.declare()
    import transformers

    return transformers


def _source(model: str) -> str:
    """The folder or hub id that `model` names."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if folder.exists():
            raise WrongInput(f"{model}: is a file; expected a hub id or a folder with config.json in it")
        if model.startswith(("/", ".", "~")) or model.count("/") > 1 or not model:
            raise WrongInput(f"{model or repr(model)}: no such folder; expected a hub id or a model's folder")
        return model
    # transformers makes up what a folder lacks: an empty T5 tokenizer, for one
    if not (folder / "config.json").is_file():
        raise WrongInput(
            f"{model}: has no config.json; expected a model's folder as save_pretrained writes it"
        )
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise WrongInput(f"{model}: has no weights; add {WEIGHTS[0]}")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise WrongInput(f"{model}: has no tokenizer; add tokenizer.json beside config.json")
    return str(folder)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No reports about weights (they are checked here), and progress bars on a terminal only."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _one_line(model: str) -> Iterator[None]:
    """What transformers and the hub raise, as one line that says what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise _explained(model, error) from error


def _explained(model: str, error: Exception) -> MdmkitError:
    from huggingface_hub import errors

    def caused_by(*kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in _causes(error))

    if caused_by(errors.GatedRepoError):
        return WrongInput(f"{model}: asks for a licence; accept it on the hub and run `hf auth login`")
    if caused_by(errors.RepositoryNotFoundError):
        return WrongInput(f"{model}: neither a folder here nor a model on the hub; check the name")
    if caused_by(errors.RevisionNotFoundError):
        return WrongInput(f"{model}: the hub has no such revision; check `revision`")
    if caused_by(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        return MdmkitError(_unreachable(model))
    if "trust_remote_code" in str(error):
        return WrongInput(f"{model}: comes with code of its own, which is never run; take another model")
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if isinstance(error, ImportError):
        return MdmkitError(f"{model}: {said}; pip install 'mdmkit[text]'")
    return WrongInput(f"{model}: cannot be loaded as a text encoder: {said}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unreachable(model: str) -> str:
    from huggingface_hub import constants

    where = f"run `hf download {model}` where there is a network, or set model to a folder that holds it"
    if constants.HF_HUB_OFFLINE:
        return f"{model}: not in the local cache, and HF_HUB_OFFLINE forbids the download; unset it, {where}"
    return f"{model}: not in the local cache, and the hub cannot be reached; {where}"
