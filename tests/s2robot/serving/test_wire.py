"""The codec and its observations: round trips with openpi's packer, and one-line errors for any other bytes."""

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from openpi_client import msgpack_numpy

from s2robot.serving.session import observation_of
from s2robot.serving.wire import _DTYPES, MAX_ITEMS, WireError, pack, unpack
from tests.errors import raised

CAMERAS = ("hand", "left")
HAND, LEFT = (np.full((4, 6, 3), value, np.uint8) for value in (1, 2))
STATE = np.arange(8, dtype=np.float64)
quick = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
any_array = st.sampled_from(list(_DTYPES.values())).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary() | any_array
nested = lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5)  # noqa: E731
message = st.dictionaries(st.text(), st.recursive(leaves, nested, max_leaves=20), max_size=5)


def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def array(dtype, shape, data: bytes) -> bytes:
    """Return a message with an array header that may contradict its data."""
    return msgpack.packb({"x": {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}})


@quick
@given(message)
def test_messages_round_trip_also_with_openpis_packer(value):
    assert same(unpack(pack(value)), value)
    assert same(unpack(msgpack_numpy.packb(value)), value) and same(msgpack_numpy.unpackb(pack(value)), value)


@pytest.mark.parametrize(
    "value",
    [np.array([object()]), np.array(["text"]), np.zeros(3, [("x", "f4")]), np.zeros(3, "M8[s]"), np.zeros(3, "c8"),
     object(), 2**70],
)  # fmt: skip
def test_unsupported_values_are_rejected(value):
    raised(WireError, "^cannot be sent: [^\n]*$", pack, {"value": value})


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xc1", "text", msgpack.packb([1]), msgpack.packb({1: 2}), b"\x80\x80", array("<f4", [1], b"abc"),
        array("|O", [1], b"x" * 8), array("<f4", [-2, -3], b"x" * 24), array(["<f4"], 3, b""), array("<f4", [True], b"x" * 4),
        array("|u1", [2**31, 2**31, 4], b""), array("|u1", [0, 2**30, 2**30, 2**30], b""), array("|u1", [1], "x"),
        msgpack.packb({"x": msgpack.ExtType(1, b"x")}), b"\xdd\xff\xff\xff\xff", b"\x91" * 5000 + b"\xc0",
        b"\x81\xa1x\xdc\x10\x00" + b"\x91\x90" * MAX_ITEMS, msgpack.packb({"x": [{}] * 4000, "y": [{}] * 4000}),
    ],
    ids=range(19),
)  # fmt: skip
def test_malformed_bytes_are_one_error_line(data):
    with pytest.raises(WireError) as caught:
        unpack(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@quick
@given(st.binary(max_size=300), message, st.data())
def test_any_bytes_decode_to_a_message_or_an_error(noise, value, data):
    damaged = bytearray(pack(value))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(damaged) - 1)) if damaged else 0
        damaged[start : start + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    for received in (noise, bytes(damaged)):
        try:
            assert isinstance(unpack(received), dict)
        except WireError as error:
            assert "\n" not in str(error)


sides = st.integers(-1, 4) | st.integers(-(2**63), 2**63 - 1)


@quick
@given(st.sampled_from(list(_DTYPES)), st.lists(sides, max_size=9), st.binary(max_size=64))
def test_declared_shapes_never_allocate_more_than_was_sent(name, shape, values):
    try:
        found = unpack(array(name, shape, values))["x"]
    except WireError:
        return
    assert found.nbytes == len(values) and found.shape == tuple(shape) and found.dtype.str == name


@pytest.mark.parametrize(
    "sent",
    [
        {"images": {"hand": HAND, "left": LEFT}, "proprio": STATE},
        {"hand": HAND, "left_image": LEFT, "state": STATE},
        {"observation/images/hand": HAND, "observation.images.left": LEFT, "observation.state": STATE},
        {"hand": HAND.transpose(2, 0, 1), "left": LEFT, "state": list(range(8))},
        {"cam": HAND, "left": LEFT, "hand": LEFT, "state": STATE},
    ],
)
def test_accepted_camera_keys(sent):
    keys = {"cam": "hand", "wrist": "hand"} if "cam" in sent else {}
    found = observation_of(unpack(msgpack_numpy.packb(sent)), CAMERAS, keys)
    assert np.array_equal(found["images"]["hand"], HAND) and np.array_equal(found["images"]["left"], LEFT)
    assert found["proprio"].dtype == np.float32 and np.array_equal(found["proprio"], STATE)


def test_single_camera_is_the_image_and_images_keep_original_names():
    seen = observation_of({"observation/image": HAND, "state": STATE}, ("observation.images.top",), {})
    assert np.array_equal(seen["images"]["observation.images.top"], HAND)
    seen = observation_of({"images": {"hand": HAND}, "state": STATE, "prompt": 3}, ("hand",), {"cam": "hand"})
    assert np.array_equal(seen["images"]["hand"], HAND) and seen["task"] == 3  # the policy rejects it


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"left": None}, "^camera 'left': .*serve.keys"), ({"left": LEFT * 1.0}, r"^left: .*float64 \(4, 6, 3\)"),
        ({"hand": HAND[:0]}, "^hand: "), ({"hand": np.zeros((1, 5000, 3), np.uint8)}, "^hand: "),
        ({"state": STATE[None]}, r"^state: .*float64 \(1, 8\)"), ({"state": [[1, 2], [3]]}, "^state: "),
        ({"state": "words"}, "^state: "), ({}, "^state: .*proprio"),
    ],
)  # fmt: skip
def test_invalid_observations_are_rejected(change, words):
    sent = {"hand": HAND, "left": LEFT} | ({"state": STATE} if change else {}) | change
    raised(WireError, words, observation_of, unpack(msgpack_numpy.packb(sent)), CAMERAS, {})
