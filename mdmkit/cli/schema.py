"""`mdmkit schema`: a recipe's JSON Schema."""

from __future__ import annotations

import json

from mdmkit.recipe.json_schema import json_schema

from .options import Plugins, open_registry


def command(plugins: Plugins) -> None:
    """Print the JSON Schema of a recipe with the components that are installed, for editors."""
    print(json.dumps(json_schema(open_registry(plugins)), indent=2, ensure_ascii=False))
