"""What goes wrong because of an input, a file or a machine: one line, no traceback."""

from __future__ import annotations

__all__ = ["MdmkitError", "WrongInput"]


class MdmkitError(Exception):
    """Something failed for a reason that the user can act on; the command line prints it as one line."""

    exit_code = 1


class WrongInput(MdmkitError):
    """What the user gave cannot be used: a recipe, a path, an option."""

    exit_code = 2
