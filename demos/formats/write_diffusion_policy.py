"""Our episodes as a replay buffer of diffusion_policy's: zarr format 2, a folder or one file.

    write(store, Path("mine.zarr"), ExportSettings(), progress)          # or mine.zarr.zip

Format: real-stanford/diffusion_policy, `common/replay_buffer.py`; a picture a chunk, as their data sets have them. Their
policies scale actions by the data: here they are as the store has them.
"""

import tempfile
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numcodecs
import numpy as np
import zarr
from zarr.storage import LocalStore

from s2robot.demos.errors import mismatch
from s2robot.demos.formats.convert import Progress
from s2robot.demos.formats.export import ExportSettings, pieces, rates_of
from s2robot.demos.formats.kept import NAME, of_store
from s2robot.demos.schema import parts_of
from s2robot.demos.store import EpisodeStore
from s2robot.envs.parts import words

CHUNK_BYTES = 2_000_000  # of numbers
NAMES = {"proprio": "agent_pos"}


def write(store: EpisodeStore, target: Path, settings: ExportSettings, progress: Progress) -> None:
    """Write a store as one replay buffer; as one file where the name ends in .zip.

    Raises:
        DatasetError: a number that is none, or two arrays of one name.
    """
    if target.suffix != ".zip":
        return _write_folder(store, target, progress)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.") as folder:
        _write_folder(store, Path(folder), progress)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as file:  # its chunks are packed already
            for found in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
                file.write(found, found.relative_to(folder).as_posix())


def _write_folder(store: EpisodeStore, target: Path, progress: Progress) -> None:
    places = {key: _name(key) for key in _keys(store)}
    for key, name in places.items():
        if other := next((k for k, n in places.items() if n == name and k != key), None):
            raise mismatch(store.path, f"{key} and {other}, both '{name}' there", "different names")
    kept = of_store(store, {key: [name] for key, name in places.items()})
    about = {NAME: kept.text(), "actions": words(parts_of(store.attrs, "action"))}
    root = zarr.create_group(LocalStore(target), zarr_format=2, attributes=about)
    data, steps = root.create_group("data"), store.num_steps
    made = {
        key: _array(data, name, (steps, *kept.arrays[key][1]), kept.arrays[key][0])
        for key, name in places.items()
    }
    meta = root.create_group("meta")
    for name, values in {
        "episode_ends": store.episode_ends,
        **{quote(key, safe=" :"): store.meta(key) for key in store.meta_keys},
    }.items():
        _array(meta, name, values.shape, str(values.dtype))[:] = values
    if "timestamp" not in places.values():  # their real robot's: s since the episode began
        each = zip(store.lengths, rates_of(store), strict=True)
        times = np.concatenate([np.arange(count) / rate for count, rate in each])
        _array(data, "timestamp", times.shape, "float64")[:] = times
    at = 0
    for i in range(len(store)):
        for piece in pieces(store, i):
            stop = at + len(piece["action"])
            for key, rows in piece.items():
                made[key][at:stop] = rows
            at = stop
            progress(at, steps)


def _keys(store: EpisodeStore) -> list[str]:
    pictures = [f"images_{name}" for name in store.cameras]
    return [*pictures, *(key for key in store.keys if key not in pictures)]


def _name(key: str) -> str:
    if key.startswith("images_"):
        return f"{quote(key.removeprefix('images_'), safe=' :')}_image"
    return quote(NAMES.get(key, key), safe=" :")


def _array(group: Any, name: str, shape: tuple[int, ...], dtype: str) -> Any:
    row = np.dtype(dtype).itemsize * int(np.prod(shape[1:]))
    picture = len(shape) == 4 and dtype == "uint8"
    count = 1 if picture else min(shape[0], max(1, CHUNK_BYTES // row))
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(count, *shape[1:]),
        compressors=numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE),
        fill_value=0,
        config={"write_empty_chunks": True},  # a chunk that is lost is then no black picture
    )
