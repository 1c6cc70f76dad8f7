"""TOML values into settings, strictly: exact types, no unknown keys, every problem at once. No torch.

cattrs picks the hook for an annotation; the hooks compare types exactly (cattrs' own would make 7 of "7", 3.9 and
true) and raise `Wrong` with every problem below them.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

import attrs
import cattrs

from mdmkit.errors import MdmkitError

from .options import Use
from .problems import Path, Problem, describe, unknown

if TYPE_CHECKING:
    from mdmkit.plugins.registry import Registry

__all__ = ["Structurer", "Wrong", "fields", "kind_of", "type_name"]

NONE = "none"  # TOML has no null: this string stands for None where the annotation allows None


class Wrong(Exception):
    """Problems found while structuring, with paths relative to the value that was being structured."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)


def wrong(message: str, *path: str | int) -> Wrong:
    return Wrong([Problem(path, message)])


def fields(cls: type) -> tuple[attrs.Attribute[Any], ...]:
    """The fields of a settings class, their annotations resolved to types."""
    try:
        attrs.resolve_types(cls)
    except NameError as error:
        raise MdmkitError(f"settings {cls.__module__}.{cls.__qualname__}: {error}") from None
    return attrs.fields(cls)


def kind_of(field: attrs.Attribute[Any], index: int = 0) -> str:
    """The kind that a slot takes, in the table with this index where the slot's class stands in a list."""
    kind = field.metadata["kind"]
    return kind if isinstance(kind, str) else kind[min(index, 1)]


def split_optional(annotation: Any) -> tuple[tuple[Any, ...], bool]:
    """The members of a union without None, and whether None was among them."""
    members = get_args(annotation) if get_origin(annotation) in (types.UnionType, Union) else (annotation,)
    rest = tuple(member for member in members if member is not types.NoneType)
    return rest, len(rest) < len(members)


def type_name(annotation: Any) -> str:
    """The annotation in the words of messages: int, list of float, table of float, int or list of 2 int."""
    members, optional = split_optional(annotation)
    if len(members) > 1 or optional:
        return " or ".join([*map(type_name, members), *([f"{NONE!r}"] if optional else [])])
    (member,) = members
    arguments = get_args(member)
    if get_origin(member) is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {type_name(arguments[0])}"
        return f"list of {len(arguments)} {type_name(arguments[0])}"
    if get_origin(member) is dict:
        return f"table of {type_name(arguments[1])}"
    if member is Use:
        return "component"
    return "table" if attrs.has(member) else getattr(member, "__name__", str(member))


class Structurer:
    """Structures tables into settings with the components of one registry."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.converter = cattrs.BaseConverter(detailed_validation=False)
        # later hooks win: the first one catches every annotation that the others do not name
        for applies, factory in (
            (lambda t: True, self.refuse_annotation),
            (lambda t: get_origin(t) is tuple, self.list_hook),
            (lambda t: get_origin(t) is dict, self.dict_hook),
            (lambda t: get_origin(t) in (types.UnionType, Union), self.union_hook),
            (lambda t: isinstance(t, type) and attrs.has(t), lambda t: lambda value, _: self.table(value, t)),
        ):
            self.converter.register_structure_hook_factory(applies, factory)
        for plain in (bool, int, float, str):
            self.converter.register_structure_hook(plain, scalar)

    def table(
        self, raw: Any, cls: type, *, index: int = 0, own: Sequence[str] = (), partial: dict[str, Any] | None = None
    ) -> Any:
        """An object of `cls` from a TOML table; `Wrong` with all problems.

        `own` names the keys of the table around that were taken out (they are listed among the known ones).
        `partial` collects the fields that are right even where others are not.
        """
        flat = next((field for field in fields(cls) if field.metadata.get("flat")), None)
        if flat is not None and isinstance(raw, str):
            raw = {"use": raw}
        if not isinstance(raw, dict):
            raise wrong(f"expected a table, got {describe(raw)}")
        values: dict[str, Any] = {} if partial is None else partial
        problems: list[Problem] = []
        direct = [field for field in fields(cls) if field is not flat]
        for field in direct:
            try:
                if field.name in raw:
                    values[field.name] = self.field(raw[field.name], field, index)
                else:
                    values[field.name] = self.default(field, index)
            except Wrong as error:
                problems += [problem.under((field.name,)) for problem in error.problems]
        names = [field.name for field in direct]
        rest = {key: value for key, value in raw.items() if key not in names}
        if flat is not None:
            try:
                values[flat.name] = self.use(rest, kind_of(flat, index), flat.default, own=names)
            except Wrong as error:
                problems += error.problems
        else:
            problems += [Problem((key,), unknown("unknown key", key, [*names, *own])) for key in rest]
        if problems:
            raise Wrong(problems)
        return self.checked(cls(**values))

    def checked(self, settings: Any) -> Any:
        """The settings, where their own `problems()`, (path, message) pairs, finds nothing."""
        found = [Problem(path, message) for path, message in getattr(settings, "problems", tuple)()]
        if found:
            raise Wrong(found)
        return settings

    def field(self, raw: Any, field: attrs.Attribute[Any], index: int = 0) -> Any:
        """The value of one field, its bounds checked."""
        if "kind" in field.metadata:
            return self.slot(raw, field, index)
        value = self.converter.structure(raw, field.type)  # type: ignore[arg-type]
        problems = list(out_of_bounds(value, field.metadata))
        if problems:
            raise Wrong(problems)
        return value

    def default(self, field: attrs.Attribute[Any], index: int = 0) -> Any:
        """The default of a field that the table does not have, its components resolved."""
        if field.default is attrs.NOTHING:
            help = f": {field.metadata['help']}" if field.metadata.get("help") else ""
            if "kind" in field.metadata:
                known = ", ".join(self.registry.names(kind_of(field, index))) or "none"
                raise wrong(f"missing; expected a {kind_of(field, index)}{help} (known: {known})")
            raise wrong(f"missing; expected {type_name(field.type)}{help}")
        value = field.default
        if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
            value = value.factory()  # type: ignore[union-attr]
        return self.resolve(value, field, index)

    def slot(self, raw: Any, field: attrs.Attribute[Any], index: int = 0) -> Any:
        """The component, or the list of components, of a slot."""
        kind = kind_of(field, index)
        members, optional = split_optional(field.type)
        if optional and raw == NONE:
            return None
        if members == (Use,):
            return self.use(raw, kind, field.default)
        if not isinstance(raw, list):
            raise wrong(f"expected a list of {kind} components, got {describe(raw)} (put it in brackets)")
        return tuple(gather((i, lambda entry=entry: self.use(entry, kind)) for i, entry in enumerate(raw)))

    def use(self, raw: Any, kind: str, default: Any = None, *, own: Sequence[str] = ()) -> Use:
        """One component from a bare string or a table with `use` and its settings."""
        if not isinstance(raw, (str, dict)):
            raise wrong(f"expected a {kind}, a name or a table with `use`, got {describe(raw)}")
        table = {"use": raw} if isinstance(raw, str) else raw
        if "use" not in table and isinstance(default, Use):
            table = {**table, "use": default.name}
        if "use" not in table:
            known = ", ".join(self.registry.names(kind)) or "none"
            raise wrong(f"missing; expected the name of a {kind} (known: {known})", "use")
        picked = table["use"]
        path: Path = () if isinstance(raw, str) and not own else ("use",)
        if not isinstance(picked, str):
            raise wrong(f"expected str, got {describe(picked)}", *path)
        try:
            entry = self.registry.find(kind, picked)
        except MdmkitError as error:
            raise wrong(str(error), *path) from None
        component = entry.component
        names = [field.name for field in fields(component.settings)]
        for name in (*own, "use"):
            if name in names:
                raise wrong(f"{kind} {picked!r} of {entry.owner} has a setting '{name}', which this table keeps for itself")
        settings = {key: value for key, value in table.items() if key != "use"}
        structured = self.table(settings, component.settings, own=(*own, "use"))
        return Use(component.name, component.version, structured, kind)

    def resolve(self, value: Any, field: attrs.Attribute[Any] | None = None, index: int = 0) -> Any:
        """The value with every component's kind, version and settings filled in; `Wrong` where one is not there."""
        if isinstance(value, Use):
            if field is not None and "kind" in field.metadata:
                kind = kind_of(field, index)
            elif value.kind is None:
                raise wrong(f"component {value.name!r} has no kind")
            else:
                kind = value.kind
            if value.settings is None:
                return self.use(value.pinned, kind)
            try:
                entry = self.registry.find(kind, value.pinned)
            except MdmkitError as error:
                raise wrong(str(error)) from None
            if not isinstance(value.settings, entry.component.settings):
                expected = entry.component.settings.__qualname__
                raise wrong(f"settings of {kind} {value.name!r}: expected {expected}, got {value.settings!r}")
            return Use(value.name, entry.component.version, self.resolve(value.settings), kind)
        if isinstance(value, tuple):
            return tuple(
                gather((i, lambda i=i, item=item: self.resolve(item, field, i)) for i, item in enumerate(value))
            )
        if attrs.has(type(value)):
            steps = [
                (f.name, lambda f=f: self.resolve(getattr(value, f.name), f, index)) for f in fields(type(value))
            ]
            return type(value)(**dict(zip([name for name, _ in steps], gather(steps), strict=True)))
        return value

    def list_hook(self, annotation: Any) -> Any:
        members = get_args(annotation)
        endless = members[-1] is Ellipsis

        def structure(raw: Any, _: Any) -> tuple[Any, ...]:
            if not isinstance(raw, list):
                hint = " (put it in brackets)" if not isinstance(raw, dict) else ""
                raise wrong(f"expected a {type_name(annotation)}, got {describe(raw)}{hint}")
            if not endless and len(raw) != len(members):
                raise wrong(f"expected a {type_name(annotation)}, got {len(raw)}")
            if endless and attrs.has(members[0]):
                # a class that stands in a list may pick another kind of component in its first table
                return tuple(
                    gather((i, lambda i=i, item=item: self.table(item, members[0], index=i))
                           for i, item in enumerate(raw))
                )
            wanted = [members[0]] * len(raw) if endless else members
            return tuple(
                gather((i, lambda item=item, t=t: self.converter.structure(item, t))
                       for i, (item, t) in enumerate(zip(raw, wanted, strict=True)))
            )

        return structure

    def dict_hook(self, annotation: Any) -> Any:
        _, member = get_args(annotation)

        def structure(raw: Any, _: Any) -> dict[str, Any]:
            if not isinstance(raw, dict):
                raise wrong(f"expected a {type_name(annotation)}, got {describe(raw)}")
            values = gather(
                (key, lambda item=item: self.converter.structure(item, member)) for key, item in raw.items()
            )
            return dict(zip(raw, values, strict=True))

        return structure

    def union_hook(self, annotation: Any) -> Any:
        members, optional = split_optional(annotation)

        def structure(raw: Any, _: Any) -> Any:
            if optional and raw == NONE:
                return None
            if len(members) == 1:
                return self.converter.structure(raw, members[0])
            # the shape of the value picks the member: a list, a table or a scalar
            fitting = [member for member in members if shape(member) == shape(raw)]
            if len(fitting) > 1:
                fitting = [member for member in fitting if member is type(raw)] or fitting[:1]
            if not fitting:
                raise wrong(f"expected {type_name(annotation)}, got {describe(raw)}")
            return self.converter.structure(raw, fitting[0])

        return structure

    def refuse_annotation(self, annotation: Any) -> Any:
        raise MdmkitError(f"settings cannot have a field annotated {annotation!r}")


def gather(steps: Iterable[tuple[str | int, Any]]) -> list[Any]:
    """The results of all steps, or `Wrong` with the problems of all of them, each under its own path."""
    values, problems = [], []
    for step, run in steps:
        try:
            values.append(run())
        except Wrong as error:
            problems += [problem.under((step,)) for problem in error.problems]
    if problems:
        raise Wrong(problems)
    return values


def shape(of: Any) -> type:
    """list, dict or str (any scalar): of a TOML value, or of an annotation."""
    if isinstance(of, (list, dict)):
        return type(of)
    if get_origin(of) is tuple:
        return list
    if get_origin(of) is dict or (isinstance(of, type) and attrs.has(of)):
        return dict
    return str


def scalar(value: Any, wanted: type) -> Any:
    """The value, where its type is exactly the wanted one; an int may be given for a float."""
    if wanted is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            raise wrong(f"expected float, got {describe(value)}") from None
    if type(value) is not wanted:
        raise wrong(f"expected {wanted.__name__}, got {describe(value)}{hint(value, wanted)}")
    if wanted is float and not math.isfinite(value):
        raise wrong(f"expected a finite float, got {value}")
    return value


def hint(value: Any, wanted: type) -> str:
    """What to do about a wrong type, where that is plain."""
    if wanted is str and isinstance(value, (int, float)):
        return " (put it in quotes)"
    if isinstance(value, str) and wanted is bool and value in ("true", "false"):
        return " (remove the quotes)"
    if isinstance(value, str) and wanted in (int, float):
        try:
            wanted(value)
        except ValueError:
            return ""
        return " (remove the quotes)"
    if wanted is int and isinstance(value, float) and value.is_integer():
        return f" (write {int(value)})"
    return ""


def out_of_bounds(value: Any, metadata: Any) -> Iterable[Problem]:
    """A problem for each element that the bounds or choices of its field do not allow."""
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from (problem.under((i,)) for problem in out_of_bounds(item, metadata))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (problem.under((key,)) for problem in out_of_bounds(item, metadata))
    elif "choices" in metadata and value is not None and value not in metadata["choices"]:
        choices = ", ".join(str(choice) for choice in metadata["choices"])
        one_of = "one of " if len(metadata["choices"]) > 1 else ""
        yield Problem((), f"expected {one_of}{choices}, got {describe(value)}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not within(value, metadata):
        yield Problem((), f"expected {type(value).__name__} {bounds(metadata)}, got {value}")


SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def bounds(metadata: Any) -> str:
    """The bounds of a field as people write them: ">= 0 and < 1", or nothing."""
    return " and ".join(f"{sign} {metadata[name]}" for name, sign in SIGNS.items() if name in metadata)


def within(value: float, metadata: Any) -> bool:
    return (
        value > metadata.get("gt", -math.inf)
        and value >= metadata.get("ge", -math.inf)
        and value < metadata.get("lt", math.inf)
        and value <= metadata.get("le", math.inf)
    )
