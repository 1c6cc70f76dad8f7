"""Recipes: strict TOML into settings, and back."""

from .emit import dumps
from .load import load, loads, resolve
from .options import Use, opt, slot
from .problems import Problem, RecipeError
from .schema import Recipe

__all__ = ["Problem", "Recipe", "RecipeError", "Use", "dumps", "load", "loads", "opt", "resolve", "slot"]
