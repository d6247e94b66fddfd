"""Frozen settings, validated by pydantic, with defaults from `configs/`.

    class TuneSettings(Settings, at="train.tune", file="train/default"):
        blocks: int = from_yaml(ge=0)

    TuneSettings().blocks                          # the value in configs/train/default.yaml
    TuneSettings(blocks=-1)                        # UserError: train.tune.blocks: expected >= 0, got -1
    read(TuneSettings, cfg.train.tune)             # the same from a config node
    TuneSettings(blocks=2).replace(rate=0.5)       # a validated copy

The YAML file is the only place for a default and its comment. Settings without a file have ordinary defaults.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, get_origin, overload

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.functional_validators import AfterValidator, field_validator, model_validator
from pydantic_core import ErrorDetails, ValidationError

from s2robot.core.errors import UserError
from s2robot.core.files import configs_dir

S = TypeVar("S", bound="_Frozen")
_PLAIN = ConfigDict(allow_inf_nan=False, coerce_numbers_to_str=True)


def _all_different(values: Any) -> Any:
    if any(value in values[:i] for i, value in enumerate(values)):
        raise ValueError(f"expected different values, got {list(values)}")
    return values


Different = AfterValidator(_all_different)  # the values of a list must differ


def from_yaml(**constraints: Any) -> Any:
    """Return a field whose default is the value in the YAML file of its class; ``constraints``: see pydantic's `Field`."""
    return Field(**constraints)


def invalid(key: str, expected: str, got: object) -> ValueError:
    """Return the error for a validator across fields: `<key>: expected <constraint>, got <value>`."""
    return ValueError(f"{key}: expected {expected}, got {shown(got)}")


class _OneLine(type(BaseModel)):  # type: ignore[misc]  # the name of pydantic's metaclass is private
    """Metaclass whose constructors raise UserError instead of pydantic's ValidationError."""

    def __call__(cls, **values: Any) -> Any:
        try:
            return super().__call__(**values)
        except ValidationError as error:
            by_key = {cls.file_keys().get(name, name): value for name, value in values.items()}
            raise UserError(one_line(error, by_key, cls.at)) from None


if TYPE_CHECKING:
    _Base = BaseModel
else:
    _Base = _OneLine("_Base", (BaseModel,), {"__module__": __name__})


class _Frozen(_Base):
    """Common base of settings and stored values: frozen, finite numbers only, no booleans as numbers."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, populate_by_name=True)
    at: ClassVar[str] = ""

    @field_validator("*", mode="wrap")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, validate: Any) -> Any:
        """Reject `train.steps=true`, which pydantic would convert to 1."""
        result = validate(value)
        if isinstance(value, bool) and isinstance(result, int | float) and not isinstance(result, bool):
            raise ValueError(f"expected a number, got {shown(value)}")
        return result

    def rules(self) -> Iterable[tuple[Any, ...]]:
        """Yield rules across fields as (key, whether it holds, expected, [actual value if not the key's own])."""
        return ()

    @model_validator(mode="after")
    def _follows_rules(self) -> Self:
        for key, fits, expected, *got in self.rules():
            if not fits:
                raise invalid(key, expected, got[0] if got else getattr(self, key))
        return self

    @classmethod
    def file_keys(cls) -> dict[str, str]:
        """Return field name -> key in files; they differ only for Python keywords such as `from`."""
        return {name: field.alias or name for name, field in cls.model_fields.items()}

    def replace(self, **changes: Any) -> Self:
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)


class Stored(_Frozen):
    """Base of values stored in this package's files. Unknown keys, from a later version, are ignored."""


class Settings(_Frozen):
    """Base of all settings; UserError names the first wrong key. Class arguments: ``at``, the dotted key of the config node, and
    ``file``, the file with the defaults, relative to `configs/`."""

    model_config = ConfigDict(coerce_numbers_to_str=True)
    file: ClassVar[str] = ""

    def __init_subclass__(cls, at: str = "", file: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if at or file:
            cls.at, cls.file = at, file

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the default of each field that has one, by field name."""
        fields = cls.model_fields.items()
        own = {n: f.get_default(call_default_factory=True) for n, f in fields if not f.is_required()}
        stored = yaml_defaults(cls.file, cls.at)
        return own | {name: stored[key] for name, key in cls.file_keys().items() if key in stored}

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, values: Any) -> Any:
        """Reject unknown keys, and fill missing ones from the YAML file."""
        if not isinstance(values, Mapping):
            return values
        names = cls.file_keys()
        by_key: dict[str, Any] = {names.get(str(key), str(key)): value for key, value in values.items()}
        known = sorted(names.values())
        for key in by_key:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1) or ["one of " + ", ".join(known)]
                raise ValueError(f"{key}: unknown key, expected {near[0]}")
        dicts = {names[name] for name, f in cls.model_fields.items() if get_origin(f.annotation) is dict}
        defaults = yaml_defaults(cls.file, cls.at)
        result = {key: defaults[key] for key in known if key in defaults}  # others belong to other classes
        for key, value in by_key.items():
            # fill nested settings only; the keys of a dict field belong to the user
            nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = {**result[key], **value} if nested and key not in dicts else value
        return result


class Positions(Settings):
    """A number of episodes; episode i has position ``seed`` + i."""

    episodes: int = from_yaml(ge=1)
    seed: int = from_yaml(ge=0)

    @property
    def positions(self) -> range:
        return range(self.seed, self.seed + self.episodes)


@overload
def read(cls: type[S], node: Any, at: str | None = None) -> S: ...
@overload
def read(cls: Any, node: Any, at: str) -> Any: ...
def read(cls: Any, node: Any, at: str | None = None) -> Any:
    """Parse a config node into settings or another type, or a file's content into stored values. UserError names the wrong key,
    after ``at``: a dotted key, or a file followed by ": "."""
    node, model = plain(node), isinstance(cls, type) and issubclass(cls, BaseModel)
    try:
        return (cls.model_validate if model else TypeAdapter(cls, config=_PLAIN).validate_python)(node)
    except ValidationError as error:
        raise UserError(one_line(error, node, cls.at if at is None else at)) from None


def read_some(cls: type[S], cfg: Any, at: str | None = None) -> S:
    """Like :func:`read`, but the config may hold other keys too."""
    return read(cls, {key: cfg[key] for key in cls.file_keys().values() if key in cfg}, at)


def plain(node: Any) -> Any:
    """Convert config nodes, including those inside a dict, to plain dicts and lists."""
    from omegaconf import OmegaConf

    if OmegaConf.is_config(node):
        return OmegaConf.to_container(node, resolve=True)
    return {key: plain(value) for key, value in node.items()} if isinstance(node, dict) else node


@cache
def yaml_file(file: str) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(configs_dir() / f"{file}.yaml"))


@cache
def yaml_defaults(file: str, at: str = "") -> Mapping[str, Any]:
    """Return the values of `configs/<file>.yaml`, or of its node ``at``, without required and interpolated ones."""
    if not file:
        return {}
    node = yaml_file(file)
    parts = at.split(".") if at else []
    if parts and "/" in file and parts[0] not in node:
        # a file of a config group: `train/default` is the node `train`, `policy/head/flow` is `policy.head`
        parts = parts[max(1, len(commonprefix([parts, list(Path(file).parent.parts)]))) :]
    for part in parts:
        node = node.get(part, {})
    found: dict[str, Any] = {}
    if "/" in file:  # `defaults: [robosuite, _self_]`: inherit the other file's values
        others = [name for name in node.get("defaults", ()) if isinstance(name, str) and name != "_self_"]
        for other in others:
            found |= yaml_defaults(f"{Path(file).parent}/{other.partition('@')[0]}", at)
    return found | {
        key: value
        for key, value in node.items()
        if key != "defaults" and not (isinstance(value, str) and (value == "???" or "${" in value))
    }


def one_line(error: ValidationError, values: Any, at: str = "") -> str:
    """Return one line about the first key of ``values`` that is rejected: `train.steps: expected >= 1, got 0`."""
    first, *others = error.errors()
    path = _path(values, first)
    where = at + ("." if at and path[:1] not in ("", "[") and not at.endswith(": ") else "") + path
    if first["type"] == "value_error":
        cause = first["ctx"]["error"]
        if getattr(cause, "user_error", False):
            return str(cause)
        key = str(cause).partition(": ")[0]
        joint = "." if where and re.fullmatch(r"[\w.\[\]]+", key) else ": "
        return f"{where}{joint if where and not where.endswith(': ') else ''}{cause}"
    same = [e for e in [first, *others] if _path(values, e) == path]
    expected = " or ".join(dict.fromkeys(map(_expected, same)))
    got = "nothing" if first["type"] == "missing" else shown(first["input"])
    return f"{where.removesuffix(': ')}: expected {expected}, got {got:.200}"


_WORDS = {
    "missing": "a value", "int": "an integer", "float": "a number", "bool": "true or false", "string": "a string",
    "tuple": "a list", "list": "a list", "dict": "keys and values", "mapping": "keys and values", "model": "keys and values",
    "none": "null", "path": "a path", "finite": "a finite number", "extra": "no such key",
}  # fmt: skip
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _expected(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if bounds := [f"{_SIGNS[sign]} {bound:g}" for sign, bound in context.items() if sign in _SIGNS]:
        return bounds[0]
    if "expected" in context:  # a Literal
        return str(context["expected"])
    if kind in ("too_short", "too_long"):
        count = context.get("min_length", context.get("max_length"))
        return f"{'at least' if kind == 'too_short' else 'at most'} {count} values"
    if kind in ("string_too_short", "string_pattern_mismatch"):
        return "a non-empty string" if "short" in kind else f"text like {context['pattern']}"
    return _WORDS.get(kind.split("_")[0]) or error["msg"]


def _path(values: Any, error: ErrorDetails) -> str:
    """Return the dotted key of an error, without the names that pydantic inserts for the members of a union."""
    path, here = "", values
    for part in error["loc"]:
        if isinstance(here, Mapping) and (part in here or not path or error["type"] == "missing"):
            path, here = f"{path}.{part}", here.get(part)
        elif isinstance(part, int) and hasattr(here, "__len__"):  # a single number may stand for all joints
            path, here = f"{path}[{part}]", here[part] if part < len(here) else None
        elif isinstance(here, BaseModel):
            path, here = f"{path}.{part}", getattr(here, str(part), None)
    return path.lstrip(".")


def shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return repr(list(value) if isinstance(value, tuple) else value)
