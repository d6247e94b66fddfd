"""A config's node as a frozen dataclass: OmegaConf's structured configs check keys and types.

read_settings(MlpSettings, {"hidden": [512, 512]}, "policy.network").hidden     # (512, 512)
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from s2robot.policies.errors import PolicyError

S = TypeVar("S")


def read_settings(
    cls: type[S],
    given: Mapping[str, Any] | DictConfig,
    where: str,
    error: type[ValueError] = PolicyError,
) -> S:
    """`cls(**given)` with keys and types checked; lists become the tuples that `cls` declares.

    Args:
        cls: a frozen dataclass, fields of nested dataclasses included; checks of its own stand in `__post_init__`.
        given: the node; keys that are not there take the class's defaults. A key that Python keeps for itself, such
            as `from`, is the field `from_`.
        where: the node's dotted key, for messages.
        error: what to raise.

    Raises:
        error: an unknown key (with the nearest known one), a missing one, or a value of another type.
    """
    if isinstance(given, DictConfig):
        given = OmegaConf.to_container(given, resolve=True)  # type: ignore[assignment]  # it may lean on its parents
    if not isinstance(given, Mapping):
        raise error(f"{where}: found {given!r}, expected keys and values")
    given = _as_fields(cls, given)
    try:
        node = OmegaConf.merge(_writable(OmegaConf.structured(cls)), given)
        values = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
        return _built(cls, values, where, error)
    except ConfigKeyError as wrong:
        raise error(_unknown(cls, wrong, where)) from None
    except MissingMandatoryValue as wrong:
        raise error(f"{where}: key '{wrong.full_key}' is missing") from None
    except OmegaConfBaseException as wrong:
        key, kind = str(wrong.full_key or ""), wrong.ref_type or wrong.object_type
        found = OmegaConf.select(OmegaConf.create(dict(given)), key) if key else given
        wanted = _hint(cls, key) or kind
        raise error(
            f"{'.'.join(p for p in (where, key.rstrip('_')) if p)}: found {found!r}, expected {_name(wanted)}"
        ) from None


def _as_fields(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The node with `from` as `from_` where the class has that field."""
    named = {name.rstrip("_"): name for name in get_type_hints(cls) if name.endswith("_")}
    return {named.get(key, key): value for key, value in given.items()}


def _writable(node: DictConfig) -> DictConfig:
    """OmegaConf locks the nodes of frozen dataclasses, nested ones for good."""
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            _writable(child)
    return node


def _built(cls: Any, values: Any, where: str, error: type[ValueError]) -> Any:
    """The container `values` as an instance of `cls`, nested dataclasses too."""
    hints = get_type_hints(cls)
    made = {}
    for key, value in values.items():
        hint = hints[key]
        if is_dataclass(hint) and isinstance(value, dict):
            value = _built(hint, value, f"{where}.{key}", error)
        elif isinstance(value, list) and "tuple" in str(hint):
            items = get_args(hint)
            if get_origin(hint) is tuple and Ellipsis not in items and len(items) != len(value):
                raise error(f"{where}.{key}: found {value}, expected a list of {len(items)}".lstrip("."))
            value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
        made[key] = value
    return cls(**made)


def check_ranges(
    settings: Any, where: str, error: type[ValueError] = PolicyError, **ranges: tuple[float, float]
) -> None:
    """Refuse values outside of [low, high]; None, which leaves a choice to the program, is in every range.

    Raises:
        error: names the key, what was found and what was expected.
    """
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if value is None or (low <= value <= high and math.isfinite(value)):
            continue
        expected = f"{low:g} or more" if high == math.inf else f"a value from {low:g} to {high:g}"
        if low == -math.inf:
            expected = "a number"
        raise error(f"{where}.{name}: found {value}, expected {expected}".lstrip("."))


def _unknown(cls: Any, wrong: ConfigKeyError, where: str) -> str:
    *parents, key = str(wrong.full_key).split(".")
    for parent in parents:
        cls = get_type_hints(cls)[parent]
    known = [name.rstrip("_") for name in get_type_hints(cls)]
    near = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(known)}"
    return f"{'.'.join([where, *parents])}: unknown key '{key}', {hint}"


def _hint(cls: Any, key: str) -> Any:
    """The annotation of a dotted key; of `hidden[1]` that of an item of `hidden`."""
    for part in key.split("."):
        name, item, _ = part.partition("[")
        cls = get_type_hints(cls).get(name) if is_dataclass(cls) else None
        if item and get_args(cls):
            cls = get_args(cls)[0]
    return cls


def _name(kind: Any) -> str:
    if is_dataclass(kind):
        return "keys and values"
    return str(kind) if get_origin(kind) or not hasattr(kind, "__name__") else kind.__name__
