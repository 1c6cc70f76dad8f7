"""The table of verbs, and the call of one: parse, run, exit code. No torch.

Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted. Results go to stdout, talk to stderr.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from mdmkit.errors import MdmkitError

__all__ = ["VERBS", "main", "verbs"]


class Verb(NamedTuple):
    """Where a verb's function stands ("module:attr", its parameters are typer's), and its line of help."""

    target: str
    help: str


VERBS: dict[str, Verb] = {
    "run": Verb("mdmkit.cli.run:command", "train by a recipe, then sample and report; or resume"),
    "sample": Verb("mdmkit.cli.sample:command", "draw pictures with a trained run or model"),
    "evaluate": Verb("mdmkit.cli.evaluate:command", "measure a trained run or model"),
    "check": Verb(
        "mdmkit.cli.check:command", "validate recipes; with --build also shapes, parameters, memory"
    ),
    "show": Verb("mdmkit.cli.show:command", "the resolved recipe: every default, every version"),
    "list": Verb("mdmkit.cli.list:command", "the components and recipes that are installed"),
    "explain": Verb("mdmkit.cli.explain:command", "a component's settings, a key of a recipe, or plots"),
    "plugins": Verb(
        "mdmkit.cli.plugins:command", "the plugins that are installed, and what is wrong with them"
    ),
    "new": Verb("mdmkit.cli.new:command", "a recipe to edit, or a plugin package that passes its tests"),
    "schema": Verb(
        "mdmkit.cli.schema:command", "JSON Schema of a recipe with what is installed, for editors"
    ),
    "import": Verb("mdmkit.cli.import_:command", "read released checkpoints"),
    "export": Verb("mdmkit.cli.export:command", "write a model in another format"),
    "pack": Verb("mdmkit.cli.pack:command", "write a dataset as WebDataset shards"),
    "extractor": Verb("mdmkit.cli.extractor:command", "learn features for fidelity from a recipe's data"),
    "demo": Verb("mdmkit.cli.demo:command", "a web page to draw with"),
}


def verbs() -> dict[str, Verb]:
    """The verbs whose modules exist."""
    return {
        name: verb for name, verb in VERBS.items() if importlib.util.find_spec(verb.target.partition(":")[0])
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    present = verbs()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview(present), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from mdmkit import __version__

        print(f"mdmkit {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in present:
        from mdmkit.recipe.problems import unknown

        print(f"mdmkit: {unknown(f'unknown verb {name!r}', name, present)}", file=sys.stderr)
        return 2
    try:
        code = call(present[name], name, rest)
        sys.stdout.flush()
        return code
    except MdmkitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader of a pipe has gone (`mdmkit list | head`); Python would complain when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def overview(present: dict[str, Verb]) -> str:
    """The help of the program itself."""
    from mdmkit import __doc__ as doc

    lines = ["usage: mdmkit VERB ...   (mdmkit VERB --help says more)", "", (doc or "").splitlines()[0], ""]
    return "\n".join([*lines, *(f"  {name:9} {verb.help}" for name, verb in present.items())])


def call(verb: Verb, name: str, arguments: Sequence[str]) -> int:
    """Parse a verb's arguments by its function's annotations and call it."""
    import typer
    import typer.main

    module, _, attribute = verb.target.partition(":")
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(name, help=None)(getattr(importlib.import_module(module), attribute))
    command: Any = typer.main.get_command(app)
    try:
        code = command.main(list(arguments), prog_name=f"mdmkit {name}", standalone_mode=False)
    except typer.Abort as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # older versions turn Ctrl-C into this
            return 130
        print("aborted", file=sys.stderr)
        return 1
    except Exception as error:
        # click's own errors (typer carries a copy of click in some versions) know their message and exit code
        if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
            raise
        message = error.format_message()  # type: ignore[attr-defined]
        print(
            f"mdmkit {name}: {message[:1].lower()}{message[1:]} (see mdmkit {name} --help)", file=sys.stderr
        )
        return error.exit_code  # type: ignore[attr-defined]
    return code if isinstance(code, int) else 0
