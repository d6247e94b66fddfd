"""Write replay buffers of diffusion_policy: zarr format 2, a folder or one file.

    write(store, Path("mine.zarr"), ExportSettings(), progress)          # or mine.zarr.zip

Format: real-stanford/diffusion_policy, `common/replay_buffer.py`; one image per chunk, as in their datasets. Their policies
scale actions by the data, so actions are written as stored.
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

from s2robot.core.parts import words
from s2robot.demos.formats.diffusion_policy import STATE
from s2robot.demos.formats.export import ExportSettings, array_keys, check_names, pieces, rates_of
from s2robot.demos.formats.sidecar import NAME, Sidecar
from s2robot.demos.formats.source import Progress
from s2robot.demos.schema import parts_of
from s2robot.demos.store import EpisodeStore

CHUNK_BYTES = 2_000_000  # of numbers
NAMES = {"proprio": STATE}


def write(store: EpisodeStore, target: Path, settings: ExportSettings, progress: Progress) -> None:
    """Write a store as one replay buffer; as one file if the name ends in .zip.

    Raises:
        DatasetError: a number that is not finite, or two arrays of one name.
    """
    if target.suffix != ".zip":
        return _write_folder(store, target, progress)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.") as folder:
        _write_folder(store, Path(folder), progress)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as file:  # its chunks are compressed
            for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
                file.write(path, path.relative_to(folder).as_posix())


def _write_folder(store: EpisodeStore, target: Path, progress: Progress) -> None:
    places = {key: _name(key) for key in array_keys(store)}
    check_names(places.items(), store.path)
    sidecar = Sidecar.of_store(store, {key: [name] for key, name in places.items()})
    attributes = {NAME: sidecar.text(), "actions": words(parts_of(store.attrs, "action"))}
    root = zarr.create_group(LocalStore(target), zarr_format=2, attributes=attributes)
    data, steps = root.create_group("data"), store.num_steps
    arrays = {
        key: _array(data, name, (steps, *sidecar.arrays[key][1]), sidecar.arrays[key][0])
        for key, name in places.items()
    }
    meta = root.create_group("meta")
    for name, values in {
        "episode_ends": store.episode_ends,
        **{quote(key, safe=" :"): store.meta(key) for key in store.meta_keys},
    }.items():
        _array(meta, name, values.shape, str(values.dtype))[:] = values
    if "timestamp" not in places.values():  # as in their real robot's data: s since the episode began
        each = zip(store.lengths, rates_of(store), strict=True)
        times = np.concatenate([np.arange(count) / rate for count, rate in each])
        _array(data, "timestamp", times.shape, "float64")[:] = times
    at = 0
    for i in range(len(store)):
        for piece in pieces(store, i):
            stop = at + len(piece["action"])
            for key, rows in piece.items():
                arrays[key][at:stop] = rows
            at = stop
            progress(at, steps)


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
        config={"write_empty_chunks": True},  # a lost chunk must not read as a black image
    )
