"""Frozen settings validated by pydantic, whose defaults are the values in `configs/`.

    class TuneSettings(Settings, at="train.tune", file="train/default"):
        blocks: int = from_yaml(ge=0)

    TuneSettings().blocks                          # the value in configs/train/default.yaml
    TuneSettings(blocks=-1)                        # UserError: train.tune.blocks: expected >= 0, got -1
    read(TuneSettings, cfg.train.tune)             # the same from a node of a config
    TuneSettings(blocks=2).replace(rate=0.5)       # a validated copy

A default stands in one place, with its comment: the YAML file. Settings that no file holds take ordinary defaults.
"""

import difflib
import re
from collections.abc import Mapping
from functools import cache
from os.path import commonprefix
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from s2robot.core.errors import UserError

S = TypeVar("S", bound="_Frozen")
CONFIGS = (Path(__file__).parent.parent / "configs").resolve()


def from_yaml(**constraints: Any) -> Any:
    """A field whose default is the value in the YAML file of its class; ``constraints`` are pydantic's `Field`'s."""
    return Field(**constraints)


def invalid(key: str, expected: str, got: object) -> ValueError:
    """The error that a validator across fields raises: `<key>: expected <constraint>, got <value>`."""
    return ValueError(f"{key}: expected {expected}, got {shown(got)}")


class _OneLine(type(BaseModel)):  # type: ignore[misc]  # pydantic keeps the name of its metaclass private
    """Makes constructors raise a UserError in place of pydantic's ValidationError."""

    def __call__(cls, **values: Any) -> Any:
        try:
            return super().__call__(**values)
        except ValidationError as error:
            raise UserError(one_line(cls, error, cls.at)) from None


if TYPE_CHECKING:
    _Base = BaseModel
else:
    _Base = _OneLine("_Base", (BaseModel,), {"__module__": __name__})


class _Frozen(_Base):
    """What settings and stored values share: frozen, finite numbers, and no boolean for a number."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, populate_by_name=True)
    at: ClassVar[str] = ""

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: Any) -> Any:
        """Reject `train.steps=true`, which pydantic would take for 1."""
        if isinstance(value, bool) and not _accepts(cls.model_fields[info.field_name].annotation, bool):
            raise ValueError(f"expected no boolean, got {shown(value)}")
        return value

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some values changed."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)


class Stored(_Frozen):
    """Base of what a file of ours holds. Keys that a later version added are ignored."""


class Settings(_Frozen):
    """Base of all settings; see the module's docstring.

    Class arguments:
        at: dotted key of the node in a config, for messages and for finding the node in the file.
        file: the file below `configs/`, without its suffix, that holds the defaults. A file of a group holds the node
            of that group at its top level.

    Raises:
        UserError: one line that names the first wrong key, what was expected and what was given.
    """

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)
    file: ClassVar[str] = ""

    def __init_subclass__(cls, at: str = "", file: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if at or file:
            cls.at, cls.file = at, file

    @classmethod
    def __pydantic_init_subclass__(cls, at: str = "", file: str = "", **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the default of each field that has one, by the field's name."""
        stored = yaml_defaults(cls.file, cls.at) if cls.file else {}
        own = {
            n: f.get_default(call_default_factory=True)
            for n, f in cls.model_fields.items()
            if not f.is_required()
        }
        return own | {n: stored[key] for n, f in cls.model_fields.items() if (key := f.alias or n) in stored}

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, values: Any) -> Any:
        """Fill keys that were not given from the YAML file."""
        if not isinstance(values, Mapping) or not cls.file:
            return values
        names, own = _names(cls), {field.alias or name for name, field in cls.model_fields.items()}
        # a file may hold the keys of several classes
        defaults = {key: value for key, value in yaml_defaults(cls.file, cls.at).items() if key in own}
        for key, value in values.items():
            key = names.get(key) or key
            nested = isinstance(value, Mapping) and isinstance(defaults.get(key), Mapping)
            defaults[key] = {**defaults[key], **value} if nested and _is_settings(cls, key) else value
        return defaults


def read(cls: type[S], node: Any, at: str | None = None) -> S:
    """The node of a config as settings, or the content of a file as stored values.

    Args:
        cls: the class to make; keys that the node does not hold take their defaults.
        node: a mapping or an OmegaConf node.
        at: where the node stands, for messages, if not at the key of the class: a dotted key, or a file and ": ".

    Raises:
        UserError: names the wrong key.
    """
    node = _plain(node)
    try:
        return cls.model_validate(node)
    except ValidationError as error:
        raise UserError(one_line(cls, error, cls.at if at is None else at)) from None


def read_some(cls: type[S], cfg: Any, at: str | None = None) -> S:
    """As :func:`read`, from a config that holds other keys too."""
    keys = {field.alias or name for name, field in cls.model_fields.items()}
    return read(cls, {key: cfg[key] for key in keys if key in cfg}, at)


def _plain(node: Any) -> Any:
    from omegaconf import OmegaConf

    if OmegaConf.is_config(node):
        return OmegaConf.to_container(node, resolve=True)
    return {key: _plain(value) for key, value in node.items()} if isinstance(node, dict) else node


@cache
def yaml_defaults(file: str, at: str = "") -> Mapping[str, Any]:
    """The values of `configs/<file>.yaml`, or of its node ``at``; without values to be given or interpolated."""
    from omegaconf import OmegaConf

    node: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{file}.yaml"))
    parts = at.split(".") if at else []
    if parts and "/" in file and parts[0] not in node:
        # the file of a group: `train/default` is the node `train`, `policy/head/flow` is `policy.head`
        parts = parts[max(1, len(commonprefix([parts, list(Path(file).parent.parts)]))) :]
    for part in parts:
        node = node.get(part, {})
    if "/" in file:  # `defaults: [robosuite, _self_]`: the other file's values, where this one has none
        others = [name for name in node.get("defaults", ()) if isinstance(name, str) and name != "_self_"]
        node = {
            k: v
            for other in others
            for k, v in yaml_defaults(f"{Path(file).parent}/{other.partition('@')[0]}", at).items()
        } | node
    return {
        key: value
        for key, value in node.items()
        if key != "defaults" and not (isinstance(value, str) and (value == "???" or "${" in value))
    }


def one_line(cls: type[BaseModel], error: ValidationError, at: str = "") -> str:
    """The first key that a validation rejects: `train.steps: expected >= 1, got 0`."""
    first, *others = error.errors()
    path, model = _path(cls, first["loc"])
    where = at + ("." if at and path and not at.endswith(": ") else "") + path
    if first["type"] == "extra_forbidden":
        known = sorted(field.alias or name for name, field in model.model_fields.items())
        near = difflib.get_close_matches(path.rpartition(".")[2], known, 1)
        return f"{where}: unknown key, expected {near[0] if near else 'one of ' + ', '.join(known)}"
    if first["type"] in ("value_error", "assertion_error"):
        cause = first["ctx"]["error"]
        if getattr(cause, "user_error", False):
            return str(cause)
        key = str(cause).partition(": ")[0]
        joint = "." if where and re.fullmatch(r"[\w.\[\]]+", key) else ": "
        return f"{where}{joint if where and not where.endswith(': ') else ''}{cause}"
    same = [e for e in [first, *others] if _path(cls, e["loc"])[0] == path]
    expected = " or ".join(dict.fromkeys(map(_expected, same)))
    got = "nothing" if first["type"] == "missing" else shown(first["input"])
    return f"{where.removesuffix(': ')}: expected {expected}, got {got}"


_WORDS = {
    "missing": "a value", "int": "an integer", "float": "a number", "bool": "true or false", "string": "a string",
    "tuple": "a list", "list": "a list", "dict": "keys and values", "mapping": "keys and values", "model": "keys and values",
    "none": "null", "path": "a path", "finite": "a finite number",
}  # fmt: skip
_SIGNS = {
    "greater_than_equal": ">= {ge}",
    "greater_than": "> {gt}",
    "less_than_equal": "<= {le}",
    "less_than": "< {lt}",
}


def _expected(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _SIGNS:
        return _SIGNS[kind].format(**{sign: f"{bound:g}" for sign, bound in context.items()})
    if "expected" in context:  # a Literal
        return str(context["expected"])
    if kind in ("too_short", "too_long"):
        count = context.get("min_length", context.get("max_length"))
        return f"{'at least' if kind == 'too_short' else 'at most'} {count} values"
    if kind.startswith("path_not_"):
        return f"a {kind.removeprefix('path_not_')}"
    return _WORDS.get(kind.split("_")[0]) or error["msg"]


def _path(cls: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel]]:
    """The dotted key of an error's place, without pydantic's names of a union's members, and the innermost model."""
    path, here, model = "", (cls,), cls
    for part in loc:
        for kind in here:
            origin, inside = get_origin(kind), get_args(kind)
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                model, fields = kind, kind.model_fields
                found = fields.get(str(part)) or next((f for f in fields.values() if f.alias == part), None)
                path += f".{part}" if found or part == loc[-1] else ""
                here = _members(found.annotation) if found else here
                break
            if origin in (dict, Mapping):
                path, here = f"{path}.{part}", _members(inside[1])
                break
            if origin in (tuple, list) and isinstance(part, int):
                item = inside[min(part, len(inside) - 1)]
                path, here = f"{path}[{part}]", _members(inside[0] if item is Ellipsis else item)
                break
    return path.lstrip("."), model


def _members(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _accepts(annotation: Any, kind: type) -> bool:
    """Whether a value of ``kind`` may stand in the field: as itself, in a union, or as anything."""
    members = _members(annotation)
    return any(
        m in (kind, Any, object)
        or (get_origin(m) is not None and not issubclass(get_origin(m), (list, tuple)))
        for m in members
        if m is not type(None)
    )


def _is_settings(cls: type[BaseModel], name: str) -> bool:
    field = cls.model_fields.get(name)
    found = _members(field.annotation) if field else ()
    return any(isinstance(t, type) and issubclass(t, Settings) for t in found)


def _names(cls: type[BaseModel]) -> dict[str, str]:
    """Field name -> key in the file, where they differ: a key that Python keeps for itself, such as `from`."""
    return {name: str(field.alias) for name, field in cls.model_fields.items() if field.alias}


def shown(value: object) -> str:
    """A value as YAML shows it."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return repr(value)
