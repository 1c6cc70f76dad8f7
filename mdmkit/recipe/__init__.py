"""Recipes: strict TOML into settings, and back."""

from .options import Use, opt, slot

__all__ = ["Use", "opt", "slot"]
