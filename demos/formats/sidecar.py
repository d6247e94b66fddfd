"""What our writers store beside a format's own fields, so that reading the file back restores the same store.

    group.attrs["s2robot"] = Sidecar.of_store(store, places).text()
    sidecar = read(Sidecar, json.loads(group.attrs["s2robot"]))

Other programs ignore it. Where it exists, names, types, the order of cameras and the parts come from it instead of from the
format's conventions.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from s2robot.core.settings import Stored
from s2robot.demos.bounds import number_type
from s2robot.demos.errors import DatasetError, one_line
from s2robot.demos.replay import camera_sizes
from s2robot.demos.store import EpisodeStore

NAME = "s2robot"  # of the attribute, and of the group of arrays that have no place in the format

Dtype = Annotated[str, AfterValidator(lambda name: str(number_type("dtype", name)))]
Types = dict[str, tuple[Dtype, tuple[int, ...]]]  # key -> dtype, shape of a row


class Sidecar(Stored):
    """Attributes of a store, and the types of its arrays and values."""

    attributes: dict[str, Any]
    arrays: Types  # over time
    values: Types  # one per episode
    places: dict[str, tuple[str, ...]] = Field(
        min_length=1
    )  # array -> the file's arrays whose columns it joins

    @model_validator(mode="after")
    def _each_array_has_a_place(self) -> Self:
        if self.arrays.keys() != self.places.keys():
            raise ValueError("places: expected one for each array")
        return self

    @classmethod
    def of_store(cls, store: EpisodeStore, places: Mapping[str, Sequence[str]]) -> "Sidecar":
        """Describe a store; ``places`` maps each array to its place. Frames drawn from states count as images."""
        attributes = {k: v for k, v in store.attrs.items() if k != "schema_version"} | {"kind": "images"}
        drawn = {f"images_{name}": (*size, 3) for name, size in camera_sizes(store, store.cameras).items()}
        arrays: dict[str, Any] = {
            key: (str(store.read(key, 0, 1).dtype), store.shape(key))
            if key in store.keys
            else ("uint8", drawn[key])
            for key in places
        }
        values = {k: (str(v.dtype), v.shape[1:]) for k in store.meta_keys for v in [store.meta(k)]}
        tuples = {key: tuple(place) for key, place in places.items()}
        return cls(attributes=attributes, arrays=arrays, values=values, places=tuples)

    def text(self) -> str:
        return json.dumps(self.model_dump())

    def with_cameras(self, cameras: Sequence[str]) -> "Sidecar":
        """Keep these cameras, in this order."""
        dropped = {f"images_{n}" for n in self.attributes["cameras"] if n not in cameras}
        return self.replace(
            attributes={**self.attributes, "cameras": list(cameras)},
            arrays={key: types for key, types in self.arrays.items() if key not in dropped},
            places={key: place for key, place in self.places.items() if key not in dropped},
        )

    def array(self, key: str, columns: Sequence[np.ndarray]) -> np.ndarray:
        """Join columns of the file to an array of the store.  # (t, ...)"""
        dtype, row = self.arrays[key]
        joined = columns[0] if len(columns) == 1 else np.concatenate(columns, 1)
        return np.asarray(joined).reshape(len(joined), *row).astype(dtype, copy=False)

    def episode_values(self, stored: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
        """Return an episode's values with their types (DatasetError)."""
        try:
            return {k: np.asarray(stored[k], d).reshape(s) for k, (d, s) in self.values.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{where}: values of an episode that cannot be read ({one_line(error)})"
            ) from None
