"""`mdmkit plugins`: who offers what, and what is wrong."""

from __future__ import annotations

import json

from . import options
from .options import Json, Plugins


def command(plugins: Plugins, as_json: Json = False) -> None:
    """List the plugins that are installed, what they offer, and why one cannot be used."""
    registry = options.load_registry(plugins)
    found = []
    for plugin in registry.plugins:
        offered = [e.component for e in registry.entries() if e.plugin.name == plugin.name]
        found.append(
            {"name": plugin.name, "distribution": plugin.distribution, "version": plugin.version,
             "module": plugin.module, "error": plugin.error,
             "components": [f"{c.kind}/{c.name}" for c in offered]}
        )  # fmt: skip
    if as_json:
        more = {"switched_off": sorted(registry.switched_off)}
        print(json.dumps({"plugins": found, **more}, indent=2, ensure_ascii=False))
        return
    for plugin, row in zip(registry.plugins, found, strict=True):
        count = len(row["components"])
        state = f"cannot be used: {plugin.error}" if plugin.error else f"{count} component{'s'[: count != 1]}"
        print(f"{plugin.name} ({plugin.owner}): {state}")
        if plugin.name != "mdmkit":
            for name in row["components"]:
                print(f"  {name}")
    for name in sorted(registry.switched_off):
        print(f"{name}: switched off")
