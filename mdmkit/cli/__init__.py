"""The command line: one file a verb, imported only when that verb is called. No torch.

Nothing else stands here: a verb's module becomes an attribute of this package, and `list` would
hide the builtin.
"""

from .verbs import VERBS, main

__all__ = ["VERBS", "main"]
