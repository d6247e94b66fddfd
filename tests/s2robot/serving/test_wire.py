"""The codec: what goes in comes out, and whatever bytes come in, an array or a WireError comes out."""

import math
import struct

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from s2robot.serving import wire
from s2robot.serving.remote import MAX_ANSWER, _lists
from s2robot.serving.server import _packed
from s2robot.serving.wire import ARRAY, DTYPES, MAX_ITEMS, WireError, decode, encode

quick = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
any_array = st.sampled_from(list(DTYPES.values())).flatmap(
    lambda name: arrays.arrays(
        np.dtype(name), arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
    )
)
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
message = st.recursive(
    plain | any_array,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)
    return type(a) is type(b) and a == b


def raw(number: int, shape: tuple[int, ...], values: bytes, kind: int = ARRAY) -> bytes:
    """An array on the wire, true or not."""
    head = struct.pack(f"<BB{len(shape)}q", number, len(shape), *shape)
    return msgpack.packb({"a": msgpack.ExtType(kind, head + values)})


@quick
@given(message)
def test_round_trip(value):
    assert same(decode(encode(value)), value)


@pytest.mark.parametrize(
    "make", [np.asfortranarray, lambda a: a[::-1], lambda a: a.T, lambda a: a.astype(">f4")]
)
def test_any_layout_of_memory(make):
    array = make(np.arange(30, dtype=np.float32).reshape(5, 6))
    again = decode(encode(array))
    assert again.dtype == np.float32 and np.array_equal(again, array) and not again.flags.writeable


def test_the_bytes_of_an_array_stay_what_they_are():
    """Another version of this program reads them."""
    data = encode({"a": np.array([[1, 2], [3, 4]], np.float32)})
    head = bytes([0x81, 0xA1, ord("a"), 0xC7, 34, 1, 3, 2]) + (2).to_bytes(8, "little") * 2
    assert data == head + struct.pack("<4f", 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([object()]), "found dtype object, expected one of uint8, int64, float32, float64"),
        (np.array([{"a": 1}, None]), "found dtype object"),
        (np.array(["text"]), "found dtype <U4"),
        (np.zeros(3, [("x", "f4")]), "found dtype"),
        (np.zeros(3, "M8[s]"), "found dtype"),
        (np.zeros(3, np.complex64), "found dtype complex64"),
        (np.zeros((1,) * 9, np.uint8), "found 9 dimensions, expected at most 8"),
        (object(), "found a object"),
        ((1, 2), "found a tuple"),
        (2**70, "found a int"),
    ],
)
def test_what_cannot_be_sent(value, words):
    with pytest.raises(WireError, match=words) as caught:
        encode({"value": value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (raw(0, (1,), b"x"), "dtype number 0, expected one of"),
        (raw(ord("O"), (1,), b"x" * 8), "dtype number 79"),
        (raw(1, (-1,), b""), r"negative dimension in shape \(-1,\)"),
        (raw(1, (-2, -3), b"x" * 6), "negative dimension"),
        (raw(1, (2**62, 4), b"x" * 16), "expected at most"),
        (raw(1, (2**32, 2**32), b""), "expected at most"),  # the product is 0 in 64 bits
        (raw(1, (0, 2**60), b""), "expected at most"),
        (raw(3, (4,), b"x" * 15), "found 15 bytes of values, which is not the size of float32"),
        (raw(3, (4,), b"x" * 17), "found 17 bytes of values"),
        (raw(1, (1,) * 9, b"x"), "found 9 dimensions"),
        (msgpack.packb(msgpack.ExtType(ARRAY, b"\x01\x04")), "found 4 dimensions in 2 bytes"),
        (msgpack.packb(msgpack.ExtType(ARRAY, b"\x01")), "found 1 bytes, expected at least 2"),
        (raw(1, (1,), b"x", kind=2), "found extension 2, expected 1"),
        (b"\x93NUMPY", "not a message"),
        (b"", "not a message"),
        (b"\xc1", "not a message"),
        (b"\x01\x01", "not a message"),  # a second message behind the first
        (b"\x81\xc0\xc0", "not a message"),  # a key that is null
        (b"\x81\xc4\x01a\xc0", "found a key of type bytes, expected text"),
        (b"\xdd\xff\xff\xff\xff", "not a message"),  # a list of 4 billion
        (b"\x91" * 5000 + b"\xc0", "not a message"),  # 5000 lists in each other
        (b"\xdc\x10\x00" + b"\x91\x90" * 4096, f"more than {MAX_ITEMS} lists and dicts"),
    ],
)
def test_what_is_refused(data, words):
    with pytest.raises(WireError, match=words) as caught:
        decode(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def readable(data: bytes) -> None:
    try:
        decode(data)
    except WireError as error:
        assert "\n" not in str(error)


@quick
@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(data):
    readable(data)


@quick
@given(message, st.data())
def test_a_damaged_message_is_a_message_or_refused(value, data):
    whole = bytearray(encode(value))
    for _ in range(data.draw(st.integers(1, 4))):
        if whole:
            place = data.draw(st.integers(0, len(whole) - 1))
            whole[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    readable(bytes(whole))


@quick
@given(
    st.integers(0, 255),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 4), max_size=9),
    st.binary(max_size=64),
)
def test_no_shape_gets_memory_that_was_not_sent(number, shape, values):
    try:
        array = decode(raw(number, tuple(shape), values))["a"]
    except WireError:
        return
    assert array.nbytes == len(values) and array.shape == tuple(shape) and array.dtype.str in DTYPES.values()


def test_msgpack_times_are_plain_numbers():
    assert decode(msgpack.packb(msgpack.Timestamp(5))) == 5.0
    assert wire.PROTOCOL == 1  # whoever changes the form of a message has to raise it


def test_the_contract_of_a_policy_of_many_demos_fits_into_a_message():
    for count in (3, MAX_ITEMS, MAX_ITEMS + 1, 130_000):
        contract = {
            "robot": "xarm7",
            "dataset": {"seeds": list(range(count)), "name": "many"},
            "cameras": ["hand"],
        }
        sent = encode(_packed(contract))
        assert len(sent) < MAX_ANSWER and _lists(decode(sent)) == contract
