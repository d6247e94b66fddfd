"""Malicious datasets: code execution, excessive memory, files outside the dataset. Each is a one-line error or is read."""

import json
import os
import pickle
import resource
import shutil
import struct
import zlib
from contextlib import suppress
from itertools import product
from pathlib import Path

import h5py
import numcodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from numcodecs.registry import codec_registry
from PIL import Image

from s2robot.core.errors import UserError
from s2robot.demos.formats.convert import convert, read
from s2robot.demos.formats.source import Choice
from s2robot.demos.store import EpisodeStore
from s2robot.overrides import one_line
from tests.demos.formats import made
from tests.demos.formats.made import converted, edited, refused, zipped
from tests.errors import refuses

HUGE = 1 << 34


@pytest.fixture(autouse=True)
def little_memory():
    """Allow 3 GiB more than now, so that a missing check raises an error instead of exhausting the machine."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (3 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


class Payload:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture(scope="module")
def group2(tmp_path_factory):
    """Return a function that copies a replay buffer of four steps."""
    path = tmp_path_factory.mktemp("buffer") / "in.zarr"
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    for key, values in {
        "data/action": np.ones((4, 2), "f4"), "data/agent_pos": np.ones((4, 2), "f4"), "data/timestamp": np.arange(4) / 10,
        "meta/episode_ends": np.array([4]), "data/front_image": np.full((4, 6, 8, 3), 7, "u1"),
    }.items():  # fmt: skip
        root.create_array(key, shape=values.shape, dtype=values.dtype, chunks=values.shape)[:] = values
    return lambda copy: shutil.copytree(path, copy)


def array2(path: Path, chunk: bytes | None, **about) -> None:
    """Write the files of an array of a replay buffer by hand; without `chunk`, its metadata only."""
    plain = {"zarr_format": 2, "shape": [4], "chunks": [4], "dtype": "<f4", "fill_value": 0, "order": "C"}
    about = plain | {"compressor": None, "filters": None} | about
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    (path / ".zarray").write_text(json.dumps(about))
    if chunk is not None:
        (path / ".".join("0" for _ in about["shape"])).write_bytes(chunk)


@pytest.mark.parametrize("codec", sorted(codec_registry))
def test_no_codec_runs_code(tmp_path, group2, codec):
    """As compressor and as filter, alone and with pickle, in read and unread arrays, in a folder, a zip and .zmetadata."""
    trap, entry, pickled = tmp_path / "made-by-a-pickle", {"id": codec}, {"id": "pickle", "protocol": 5}
    chunk = pickle.dumps(Payload(trap))
    with_pickle = [{"compressor": pickled, "filters": [entry]}, {"compressor": entry, "filters": [pickled]}]
    codecs = [*with_pickle, {"compressor": entry}, {"filters": [entry]}]
    cases = product(codecs, ("|O", "<f4"), ("data/action", "meta/note"))
    for number, (about, dtype, key) in enumerate(cases):
        path = group2(tmp_path / str(number))
        array2(path / key, chunk, dtype=dtype, fill_value="" if dtype == "|O" else 0, **about)
        files = {f.relative_to(path).as_posix(): json.loads(f.read_text()) for f in path.rglob(".z[ag]*")}
        (path / ".zmetadata").write_text(json.dumps({"zarr_consolidated_format": 1, "metadata": files}))
        for form in (path, zipped(path)):
            with suppress(UserError):
                list(read(form, Choice()).pieces(0))
                assert key == "meta/note"  # unused arrays are not read
    assert not trap.exists()


def in_chunks(*shape: int) -> dict:
    return {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}}}


@pytest.mark.parametrize("codec", ["pickle", "json2", "msgpack2"])
def test_no_codec_runs_code_in_an_episode_store(tmp_path, codec):
    trap, path = tmp_path / "made-by-a-pickle", made.store(tmp_path / "in.zarr").path
    (path / "meta/task/c.0").write_bytes(pickle.dumps(Payload(trap)))
    file = path / "meta/task/zarr.json"
    plain, one = json.loads(file.read_text()), {"name": f"numcodecs.{codec}", "configuration": {}}
    lists = (
        [one], [{"name": "bytes"}, one], [one, {"name": "vlen-utf8"}], [{"name": codec}, *plain["codecs"]], [{"name": 5}],
    )  # fmt: skip
    kinds = ("int64", "string", "variable_length_bytes")
    changes = [{"codecs": codecs, "data_type": kind} for codecs, kind in product(lists, kinds)]
    shapes = (([], []), ([2], [0]), ([2, 3], [2, 1]))
    for about in [*changes, *({"shape": shape, **in_chunks(*chunks)} for shape, chunks in shapes)]:
        file.write_text(json.dumps(plain | about))
        with pytest.raises(UserError):
            EpisodeStore.open(path)
    assert not trap.exists()


def zstd_of_zeros(size: int) -> bytes:
    """Return a zstd frame that declares its size and holds that many zeros, 4 bytes for each 128 KiB."""
    head = b"\x28\xb5\x2f\xfd" + bytes([0b11000000, 0x58]) + struct.pack("<Q", size)
    blocks, remainder = divmod(size, 1 << 17)
    sizes = [1 << 17] * blocks + [remainder] * bool(remainder)
    heads = (n << 3 | 2 | (i == len(sizes) - 1) for i, n in enumerate(sizes))
    return head + b"".join(struct.pack("<I", n)[:3] + b"\0" for n in heads)


ZSTD, BLOSC = {"id": "zstd", "level": 1}, numcodecs.Blosc("lz4")
FLOATS = np.ones((4, 2), "f4").tobytes()
SMALL = {"shape": [4, 2], "chunks": [4, 2]}


@pytest.mark.parametrize(
    ("key", "chunk", "about"),
    [
        ("data/action", None, {"shape": [HUGE, 2], "chunks": [HUGE, 2]}),
        ("meta/episode_ends", None, {"shape": [HUGE], "chunks": [1], "dtype": "<i8", "fill_value": 1}),
        ("meta/episode_ends", b"", {"shape": [1], "chunks": [HUGE], "dtype": "<i8", "compressor": ZSTD}),
        ("data/action", FLOATS, {"shape": [4, 2], "chunks": [4, HUGE]}),
        ("data/action", FLOATS * 9, SMALL),
        ("data/action", FLOATS[:9], SMALL),
        ("data/action", zstd_of_zeros(HUGE), SMALL | {"compressor": ZSTD}),
        ("data/action", zstd_of_zeros(32) + zstd_of_zeros(1 << 32), SMALL | {"compressor": ZSTD}),  # a second frame after a valid one
        ("data/action", zlib.compress(bytes(1 << 28)), SMALL | {"compressor": {"id": "zlib", "level": 1}}),
        # blosc and lz4 with a header that claims more than the chunk holds
        ("data/action", BLOSC.encode(bytes(32))[:4] + b"\xff\xff\xff\x7f" + BLOSC.encode(bytes(32))[8:], SMALL | {"compressor": {"id": "blosc", "cname": "lz4"}}),
        ("data/action", b"\xff\xff\xff\x7f" + numcodecs.LZ4().encode(bytes(32))[4:], SMALL | {"compressor": {"id": "lz4"}}),
        ("data/action", FLOATS, {"shape": [4, 2], "chunks": [0, 2]}),
        ("data/action", FLOATS, {"shape": "4", "chunks": [4, 2]}),
    ],
)  # fmt: skip
def test_replay_buffer_with_false_sizes_is_rejected(tmp_path, group2, key, chunk, about):
    path = group2(tmp_path / "in.zarr")
    array2(path / key, chunk, **about)
    for form in (path, zipped(path)):
        refused(form)


def test_store_with_false_sizes_is_rejected(tmp_path):
    folder = made.store(tmp_path / "in.zarr").path / "data/proprio"
    content = (folder / "zarr.json").read_text()
    tall, wide = ({"shape": shape, **in_chunks(*shape)} for shape in ([HUGE, 4], [12, HUGE]))
    for about in (tall, wide, in_chunks(12, 1), {}):
        (folder / "zarr.json").write_text(content)
        edited(folder / "zarr.json", **about)
        if not about:  # half a megabyte that claims to hold 16 GiB of zeros
            (folder / "c.0.0").write_bytes(zstd_of_zeros(HUGE))
        refuses("proprio", EpisodeStore.open, tmp_path / "in.zarr")
    edited(folder.parents[1] / "meta/episode_ends/zarr.json", shape=[HUGE + 1], **in_chunks(2))
    refuses("episode_ends", EpisodeStore.open, tmp_path / "in.zarr")  # the files of all chunks are not listed


def test_constant_images_are_read_and_endless_files_are_not(tmp_path, group2):
    """64 MB of one colour in a few kilobytes, omitted chunks, a chunk that links to /dev/zero, false sizes in a zip."""
    path, size = group2(tmp_path / "in.zarr"), (4, 2000, 2500, 3)
    data = zarr.open_group(str(path), mode="r+", zarr_format=2)["data"]
    data.create_array("top_image", shape=size, dtype="u1", chunks=(1, *size[1:]))[:2] = 9
    assert converted(path)["images_top"][:, 7, 7, 0].tolist() == [9, 9, 0, 0]
    (path / "data/action/0.0").unlink()
    (path / "data/action/0.0").symlink_to("/dev/zero")
    assert "data/action: 0 of 1 chunks" in " ".join(convert(path, tmp_path / "out.zarr").notes)
    array2(path / "data/action", FLOATS, shape=[4, 1 << 28], chunks=[4, 2])
    parts = (file := zipped(path)).read_bytes().split(b"PK\x01\x02")  # entries of the directory
    file.write_bytes(b"PK\x01\x02".join([parts[0], *(p[:16] + b"\0\0\0\xf0" + p[20:] for p in parts[1:])]))
    refused(file, "entries of at most")


POSITION = "robot0_eef_pos"


@pytest.mark.parametrize(
    ("name", "about"),
    [
        (POSITION, {"data": np.ones((4, 3)), "scaleoffset": 3}),
        (POSITION, {"shape": (4, HUGE), "dtype": "f8", "chunks": (1, 1024)}),  # no data is stored
        (POSITION, {"shape": (4, 3), "dtype": "f8", "chunks": (4, 1 << 26), "maxshape": (None, None)}),
        (POSITION, {"shape": (4, 3), "dtype": h5py.vlen_dtype(np.float64)}),
        (POSITION, {"shape": (4, 3), "dtype": "f8", "external": [("secret", 0, 96)]}),
        ("agentview_image", {"shape": (4, 60000, 60000, 3), "dtype": "u1"}),
    ],
)
@pytest.mark.parametrize("proprio", [(POSITION,), None])
def test_unusual_hdf5_arrays_are_rejected(tmp_path, monkeypatch, name, about, proprio):
    monkeypatch.chdir(tmp_path)
    Path("secret").write_bytes(bytes(4 * 3 * 8))
    with h5py.File(made.robomimic(tmp_path / "in.hdf5"), "a") as file:
        del file["data/demo_10"]
        for key in (name, "robot0_eef_quat", "robot0_gripper_qpos"):  # no other proprioception
            del file[f"data/demo_2/obs/{key}"]
        file["data/demo_2/obs"].create_dataset(name, **about)
    refused(tmp_path / "in.hdf5", choice=Choice(proprio=proprio))


ARRAYS = (f"data/demo_10/obs/{POSITION}", "data/demo_10/actions", "mask/train")
LINKS = product(("external", "soft"), (*ARRAYS, "data/demo_10/obs", "data/demo_10"))


@pytest.mark.parametrize(("kind", "key"), [*LINKS, *product(["virtual"], ARRAYS)])
def test_hdf5_links_and_virtual_datasets_are_rejected(tmp_path, kind, key):
    made.robomimic(tmp_path / "other.hdf5")
    with h5py.File(made.robomimic(tmp_path / "in.hdf5"), "a") as file:
        old = file.pop(key)
        if kind == "virtual":
            layout = h5py.VirtualLayout(old.shape, old.dtype)
            layout[:] = h5py.VirtualSource("other.hdf5", key, old.shape)
            file.create_virtual_dataset(key, layout)
        else:
            file["out" if kind == "soft" else key] = h5py.ExternalLink("other.hdf5", key)
        if kind == "soft":
            file[key] = h5py.SoftLink("/out")
    refused(tmp_path / "in.hdf5", "everything in this file", choice=Choice(proprio=(POSITION,), mask="train"))


def test_table_with_more_rows_than_its_bytes_is_rejected(tmp_path):
    path = made.lerobot_v30(tmp_path / "in")
    pq.write_table(pa.table({"episode_index": np.zeros(40_000_000, "i1")}), tmp_path / "rows")
    for folder in ("data", "meta/episodes"):
        before = (file := path / folder / "chunk-000/file-000.parquet").read_bytes()
        shutil.copy(tmp_path / "rows", file)
        refused(path, "file-000.parquet", "bytes")
        file.write_bytes(before)
    for text, n in product((os.urandom(1 << 17).hex(), "0" * (1 << 26)), (1, 16_000)):  # stored once
        shared, rows = pa.DictionaryArray.from_arrays(np.zeros(16_000, "i4"), [text]), range(16_000 // n)
        tasks = pa.ListArray.from_arrays(np.arange(0, 16_001, n, dtype="i4"), shared)
        table = pa.table({"episode_index": rows, "length": rows, "tasks": tasks})
        pq.write_table(table, file, compression="zstd", store_schema=False, dictionary_pagesize_limit=1 << 28)
        refused(path, "file-000.parquet", "2000 times")


def png(width: int, height: int, bits: int = 8) -> bytes:
    """Return a grey PNG whose header declares that size but which has no pixels."""

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(b"")) + part(b"IEND", b"")


def test_invalid_images_are_rejected(tmp_path):
    """In a LeRobot dataset whose camera is a column of images."""
    Image.new("RGB", (made.W, made.H)).save(tmp_path / "secret.png")
    path, key, features = made.lerobot_v21(tmp_path / "in"), "observation.images.top", made.features("image")
    (path / "zeros.png").symlink_to("/dev/zero")
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for row, shape, words in (
        ({"bytes": png(made.W + 1, made.H)}, [made.H, made.W, 3], "px"),
        ({"bytes": png(12_000, 9_000)}, [9_000, 12_000, 3], "stored"),
        ({"bytes": png(60_000, 60_000)}, [60_000, 60_000, 3], "image"),
        ({"bytes": png(made.W, made.H, 16)}, [made.H, made.W, 1], "8 bits"),
        ({"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 16\n"}, [16, 24, 3], "image"),
        *(({"path": p}, [16, 24, 3], p) for p in ("../secret.png", "/dev/zero", "zeros.png", "none.png")),
    ):
        features[key]["shape"] = shape
        edited(path / "meta/info.json", features=features)
        for i, n in enumerate(made.LENGTHS):
            table = made.table(i, i * made.LENGTHS[0]).append_column(key, pa.array([row] * n, kind))
            pq.write_table(table, path / f"data/chunk-000/episode_{i:06d}.parquet")
        refused(path, words)


def test_oversized_videos_and_playlists_are_rejected(tmp_path):
    """FFmpeg would open the files that the playlist names."""
    path = made.lerobot_v21(tmp_path / "in")
    for i, file in enumerate(sorted(path.rglob("*.mp4"))):
        shutil.copy(file, tmp_path)
        made.video(file, made.frames(i, (64, 96)))
    refused(path, "expected 16 x 24 px, got 64 x 96 px")
    for file in path.rglob("*.mp4"):
        file.write_text(f"ffconcat version 1.0\nfile '../../../../{file.name}'\n")
    refused(path, "mp4")


def test_paths_outside_the_dataset_and_endless_json_are_rejected(tmp_path):
    """Paths stay inside the dataset, and a split with a huge range is still read."""
    path, store = made.lerobot_v21(tmp_path / "in"), made.store(tmp_path / "in.zarr")
    info = path / "meta/info.json"
    edited(info, splits={"train": "1:99999999999"})
    assert converted(path, Choice(mask="train")).meta("source_episode").tolist() == [1]
    content = info.read_text()
    for about in (
        {"data_path": "../out/{episode_index}"},
        {"data_path": "/dev/zero"},
        {"data_path": "data/{episode_index:9999999999}"},
        {"data_path": "data/{episode_index:{episode_chunk}}"},
        {"data_path": "data/{episode_index.real.__class__.__mro__}"},
        {"video_path": "../{video_key}.mp4"},
    ):
        info.write_text(content)
        edited(info, **about)
        refused(path)
    for text in ("[" * 100_000, '{"a":' * 100_000):
        info.write_text(text)
        refused(path, "info.json")
        (store.path / "zarr.json").write_text(text)
        refuses(r"zarr\.json", EpisodeStore.open, store.path)


def test_memory_errors_are_one_line():
    for error in (MemoryError("Unable to allocate 14.9 GiB"), Image.DecompressionBombError("x")):
        text = one_line("inspect", [], error)
        assert text and "\n" not in text
