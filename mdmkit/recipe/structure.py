"""TOML values into settings, strictly: exact types, no unknown keys, every problem at once. No torch.

cattrs picks the hook for an annotation; the hooks compare types exactly (cattrs' own would make ints of "7",
3.9 and true) and raise `Wrong` with every problem below them.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

import attrs

from mdmkit.errors import MdmkitError

from .options import Use
from .problems import Path, Problem, Wrong, describe, unknown, wrong
from .scalars import out_of_bounds, scalar

if TYPE_CHECKING:
    from mdmkit.plugins.registry import Registry

__all__ = ["Structurer", "fields", "kind_of", "type_name"]

NONE = "none"  # TOML has no null: this string stands for None where the annotation allows None


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


def has_factory(field: attrs.Attribute[Any]) -> bool:
    """Whether the default is made by a function."""
    return hasattr(field.default, "factory")


def default_of(field: attrs.Attribute[Any]) -> Any:
    """The default of a field that has one, made where a factory makes it."""
    return field.default.factory() if has_factory(field) else field.default  # type: ignore[union-attr]


def split_optional(annotation: Any) -> tuple[list[Any], bool]:
    """The members of a union without None, and whether None was among them."""
    members = get_args(annotation) if get_origin(annotation) in (types.UnionType, Union) else (annotation,)
    rest = [member for member in members if member is not types.NoneType]
    return rest, len(rest) < len(members)


def type_name(annotation: Any) -> str:
    """The annotation in the words of messages: int, list of float, table of float, int or list of 2 int."""
    members, optional = split_optional(annotation)
    if len(members) > 1 or optional:
        return " or ".join([*map(type_name, members), *([f"{NONE!r}"] if optional else [])])
    member = members[0]
    arguments = get_args(member)
    if get_origin(member) is tuple:
        if arguments[-1] is Ellipsis:
            inner = type_name(arguments[0])
            return f"list of ({inner})" if " or " in inner else f"list of {inner}"
        return f"list of {len(arguments)} {type_name(arguments[0])}"
    if get_origin(member) is dict:
        return f"table of {type_name(arguments[1])}"
    if member is Use:
        return "component"
    return "table" if attrs.has(member) else getattr(member, "__name__", str(member))


class Structurer:
    """Structures tables into settings with the components of one registry."""

    def __init__(self, registry: Registry) -> None:
        import cattrs  # what only lists components does not wait for it

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
            self.converter.register_structure_hook(plain, lambda value, wanted: scalar(value, wanted))

    def table(
        self,
        raw: Any,
        cls: type,
        *,
        index: int = 0,
        own: Sequence[str] = (),
        partial: dict[str, Any] | None = None,
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
        return made(cls, values)

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
        return self.resolve(default_of(field), field, index)

    def slot(self, raw: Any, field: attrs.Attribute[Any], index: int = 0) -> Any:
        """The component, or the list of components, of a slot."""
        kind = kind_of(field, index)
        members, optional = split_optional(field.type)
        if optional and raw == NONE:
            return None
        if members == [Use] or (Use in members and not isinstance(raw, list)):
            return self.use(raw, kind, field.default)
        if not isinstance(raw, list):
            raise wrong(f"expected a list of {kind} components, got {describe(raw)} (put it in brackets)")
        return tuple(gather((i, lambda entry=entry: self.use(entry, kind)) for i, entry in enumerate(raw)))

    def use(self, raw: Any, kind: str, default: Any = None, *, own: Sequence[str] = ()) -> Use:
        """One component from a bare string or a table with `use` and its settings."""
        if not isinstance(raw, (str, dict)):
            raise wrong(f"expected a {kind} component, by name or as a table with `use`, got {describe(raw)}")
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
                raise wrong(
                    f"{kind} {picked!r} of {entry.owner} has a setting '{name}', "
                    "which this table keeps for itself"
                )
        settings = {key: value for key, value in table.items() if key != "use"}
        try:
            structured = self.table(settings, component.settings, own=(*own, "use"))
        except MdmkitError as error:
            raise wrong(f"{kind} {picked!r} of {entry.owner} is broken: {error}", *path) from None
        return Use(component.name, component.version, structured, kind)

    def resolve(self, value: Any, field: attrs.Attribute[Any] | None = None, index: int = 0) -> Any:
        """The value, every component's kind, version and settings filled in; `Wrong` where one is missing."""
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
                gather(
                    (i, lambda i=i, item=item: self.resolve(item, field, i)) for i, item in enumerate(value)
                )
            )
        if attrs.has(type(value)):
            steps = [
                (f.name, lambda f=f: self.resolve(getattr(value, f.name), f, index))
                for f in fields(type(value))
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
                    gather(
                        (i, lambda i=i, item=item: self.table(item, members[0], index=i))
                        for i, item in enumerate(raw)
                    )
                )
            wanted = [members[0]] * len(raw) if endless else members
            return tuple(
                gather(
                    (i, lambda item=item, t=t: self.converter.structure(item, t))
                    for i, (item, t) in enumerate(zip(raw, wanted, strict=True))
                )
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
            # the shape of the value picks the member: a list, a table or a scalar
            fitting = [member for member in members if shape(member) == shape(raw)]
            if len(fitting) > 1:
                fitting = [member for member in fitting if member is type(raw)] or fitting[:1]
            if not fitting:
                raise wrong(f"expected {type_name(annotation)}, got {describe(raw)}")
            if fitting[0] in (bool, int, float, str):
                return scalar(raw, fitting[0], type_name(annotation))
            return self.converter.structure(raw, fitting[0])

        return structure

    def refuse_annotation(self, annotation: Any) -> Any:
        raise MdmkitError(f"settings cannot have a field annotated {annotation!r}")


def made(cls: type, values: dict[str, Any]) -> Any:
    """The settings, where their own `problems()`, (path, message) pairs, finds nothing."""
    try:
        settings = cls(**values)
        found = [Problem(path, message) for path, message in getattr(settings, "problems", tuple)()]
    except ValueError as error:  # a validator of the class
        raise wrong(str(error)) from error
    except Exception as error:
        raise MdmkitError(f"its check of its settings failed: {type(error).__name__}: {error}") from error
    if found:
        raise Wrong(found)
    return settings


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
