"""A released YAML file as a table, with what YAML itself would hide: keys that stand twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from mdmkit.errors import MdmkitError, WrongInput

__all__ = ["Yaml", "read_yaml"]

SIZE_LIMIT = 1 << 20  # bytes; the released files have 4,000


class Yaml(NamedTuple):
    """The values of a file, and a line on each key that stands twice in a table, of which the last counts."""

    values: dict[str, Any]
    twice: list[str]


def read_yaml(path: Path) -> Yaml:
    """The table of a YAML file; numbers to the base of 60 and dates stay text, as '2:1' is a ratio here.

    Raises:
        WrongInput: it cannot be read, is no YAML, or no table with words as keys.
        MdmkitError: pyyaml is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise MdmkitError(f"reading YAML needs pyyaml ({error}); pip install 'mdmkit[interop]'") from error
    twice: list[str] = []

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.MarkedYAMLError(problem="an alias (*)", problem_mark=self.peek_event().start_mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            lines: dict[str, int] = {}
            for key, _ in node.value:
                if key.tag != "tag:yaml.org,2002:str":
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r:.40}, where a word is expected",
                        problem_mark=key.start_mark,
                    )
                line = key.start_mark.line + 1
                if key.value in lines:
                    before = lines[key.value]
                    twice.append(f"{key.value} stands in lines {before} and {line}; the last counts")
                lines[key.value] = line
            return super().construct_mapping(node, deep=deep)

        def number(self, node: Any) -> Any:
            text = self.construct_scalar(node)
            make = self.construct_yaml_float if node.tag.endswith("float") else self.construct_yaml_int
            return text if ":" in text else make(node)

        def text(self, node: Any) -> str:
            return self.construct_scalar(node)

    for tag, make in (("int", Loader.number), ("float", Loader.number), ("timestamp", Loader.text)):
        Loader.add_constructor(f"tag:yaml.org,2002:{tag}", make)
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT + 1)
        if len(data) > SIZE_LIMIT:
            raise WrongInput(f"{path}: has more than {SIZE_LIMIT:,} bytes, which no settings file has")
        values = yaml.load(data, Loader)  # a SafeLoader
    except OSError as error:
        raise WrongInput(f"{path}: cannot be read: {error.strerror or error}") from error
    except yaml.MarkedYAMLError as error:
        where = error.problem_mark or error.context_mark
        line = f":{where.line + 1}" if where else ""
        raise WrongInput(f"{path}{line}: not YAML as it is read here: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = str(error).splitlines()[0] if str(error) else "nested too deeply"
        raise WrongInput(f"{path}: not YAML as it is read here: {said}") from error
    if not isinstance(values, dict):
        raise WrongInput(f"{path}: expected a table of settings, got {type(values).__name__}")
    return Yaml(values, twice)
