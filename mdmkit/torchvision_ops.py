"""Lets torchvision be imported beside a torch that its compiled operators were not built for.

PyPI's torchvision is built for CUDA. Beside a CPU-only torch its extension does not load, and then its own
import fails (`operator torchvision::nms does not exist`), because it registers meta kernels for operators
that nobody has declared. transformers and torch-fidelity import it and fail with it, though they never call
those operators.
"""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import torch

__all__ = ["declare"]

# those for which torchvision registers a meta kernel whether or not its extension has loaded
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: torch.library.Library | None = None  # the declarations live as long as this object


def declare() -> tuple[str, ...]:
    """Declare the missing operators without which torchvision cannot be imported; their names.

    Call it before the first import of torchvision, transformers or torch-fidelity; again is harmless.
    Declares nothing where torchvision is not installed, has been imported, or brings its operators itself.
    Calling a declared operator raises NotImplementedError.
    """
    global _declared
    if _declared is not None or "torchvision" in sys.modules:
        return ()
    spec = find_spec("torchvision")
    if spec is None or not _missing():
        return ()
    for folder in spec.submodule_search_locations or ():
        _load_extension(Path(folder))
    missing = _missing()
    if missing:
        # FRAGMENT: another library may own the namespace already
        _declared = library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            library.define(_SCHEMAS[name])
    return missing


def _missing() -> tuple[str, ...]:
    return tuple(name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name))


def _load_extension(folder: Path) -> None:
    """Load torchvision's operators as its own import does; a second load does nothing."""
    for suffix in EXTENSION_SUFFIXES:
        file = folder / f"_C{suffix}"
        if file.is_file():
            try:
                torch.ops.load_library(str(file))
            except OSError:
                continue
            return
