"""openpi's own client, from the registry, against `s2robot serve`."""

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openpi_client import msgpack_numpy
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from s2robot.common.errors import UserError
from s2robot.loading import load_policy
from s2robot.serving.openpi import observation_of, pack, unpack
from s2robot.serving.server import PolicyServer, ServeSettings
from s2robot.serving.wire import WireError
from tests.s2robot.serving.test_server import CAMERAS, TOKEN, connect, observations, serving

pytestmark = pytest.mark.realtime
HAND, LEFT = (np.full((4, 6, 3), value, np.uint8) for value in (1, 2))
STATE = np.arange(8, dtype=np.float64)


@pytest.fixture(scope="module")
def checkpoint(save_untrained, tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("openpi") / "checkpoint")


def as_openpi(observation: dict) -> dict:
    images = {f"observation/{name}_image": image for name, image in observation["images"].items()}
    return {**images, "observation/state": observation["proprio"], "prompt": "pick up the cube"}


def test_their_client_gets_the_same_chunks(checkpoint):
    local, _, _ = load_policy(checkpoint, "cpu")
    with serving(checkpoint) as (server, url, _):
        client = WebsocketClientPolicy(url, api_key=TOKEN)
        told = client.get_server_metadata()
        assert told["cameras"] == list(CAMERAS) and told["sizes"] == {name: [64, 64] for name in CAMERAS}
        assert (told["actions"], told["action_dim"], told["rate_hz"]) == (3, 8, 10)
        for observation in observations(3):
            answer = client.infer(as_openpi(observation))
            expected = local.plan(observation)
            assert answer["actions"].dtype == np.float32 and np.array_equal(answer["actions"], expected)
            assert answer["server_timing"]["infer_ms"] > 0
        broker = ActionChunkBroker(client, action_horizon=3)
        one = broker.infer(as_openpi(observations(1)[0]))
        assert one["actions"].shape == (8,)
        with pytest.raises(RuntimeError, match="camera 'left': found observation/hand_image, .*serve.keys"):
            client.infer({"observation/hand_image": HAND, "state": STATE})
        with pytest.raises(RuntimeError, match="proprio"):
            client.infer(as_openpi(observations(1)[0]) | {"observation/state": STATE[:5]})
        with pytest.raises(RuntimeError, match="camera 'hand' has 4 x 6 px"):
            client.infer({"hand": HAND, "left": LEFT, "state": STATE})
        assert client.infer(as_openpi(observations(1)[0]))["actions"].shape == (3, 8)  # it goes on
        client._ws.close()
        assert server.calls == 5
    with serving(checkpoint) as (_, url, _):
        with connect(url) as own:  # the same server speaks both
            assert own.act(observations(1)[0]).shape == (8,)


def test_their_client_needs_the_token(checkpoint):
    with serving(checkpoint) as (_, url, _):
        for key in (None, "another"):
            with pytest.raises(Exception, match="401"):
                WebsocketClientPolicy(url, api_key=key)


def test_a_policy_with_a_memory_begins_anew_when_told(save_untrained, tmp_path):
    network = {"width": 16, "blocks": 1, "heads": 2, "dropout": 0.0}
    folder = save_untrained(tmp_path / "checkpoint", kind="transformer", context=3, network=network)
    first, second = map(as_openpi, observations(2))
    with serving(folder) as (_, url, _):
        client = WebsocketClientPolicy(url, api_key=TOKEN)
        fresh = client.infer(first)["actions"]
        assert not np.array_equal(client.infer(first)["actions"], fresh)
        assert np.array_equal(client.infer({**first, "reset": True})["actions"], fresh)
        client._ws.close()


# ---------------------------------------------------------------- what a message is


@pytest.mark.parametrize(
    "message",
    [
        {"images": {"hand": HAND, "left": LEFT}, "proprio": STATE},
        {"hand": HAND, "left_image": LEFT, "state": STATE},
        {"observation/images/hand": HAND, "observation.images.left": LEFT, "observation.state": STATE},
        {"hand": HAND.transpose(2, 0, 1), "left": LEFT, "state": STATE},
        {"cam": HAND, "left": LEFT, "hand": LEFT, "state": STATE},
    ],
)
def test_what_a_camera_may_be_called(message):
    keys = {"cam": "hand"} if "cam" in message else {}
    found = observation_of(unpack(msgpack_numpy.packb(message)), CAMERAS, keys)
    assert np.array_equal(found["images"]["hand"], HAND) and np.array_equal(found["images"]["left"], LEFT)
    assert found["proprio"].dtype == np.float32 and np.array_equal(found["proprio"], STATE)


def test_many_lists_are_refused_before_they_take_memory():
    data = msgpack_numpy.packb({"state": [[[]] * 4000, [[]] * 200]})
    with pytest.raises(WireError, match="found more than 4096 lists and maps"):
        unpack(data)


@pytest.mark.parametrize("state", [[[1, 2], [3]], [[1.0]], "words"])
def test_a_state_that_is_no_row_of_numbers_is_refused(state):
    message = unpack(msgpack_numpy.packb({"hand": HAND, "left": LEFT, "state": state}))
    with pytest.raises(WireError, match="^state: found .*, expected numbers"):
        observation_of(message, CAMERAS, {})


def test_the_only_camera_is_the_image():
    found = observation_of({"observation/image": HAND, "state": STATE}, ("observation.images.top",), {})
    assert np.array_equal(found["images"]["observation.images.top"], HAND)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"hand": HAND, "left": LEFT}, "the state: found hand, left, expected one of proprio, state"),
        (
            {"hand": HAND, "left": LEFT * 1.0, "state": STATE},
            r"left: found float64 \(4, 6, 3\), expected uint8",
        ),
        ({"hand": HAND[:0], "left": LEFT, "state": STATE}, "hand: found"),
        ({"hand": HAND, "left": LEFT, "state": STATE[None]}, r"state: found float64 \(1, 8\)"),
    ],
)
def test_observations_that_are_none(message, words):
    with pytest.raises(WireError, match=words):
        observation_of(message, CAMERAS, {})


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xc1", msgpack.packb([1]), msgpack.packb({1: 2}),
        msgpack.packb({"x": {b"__ndarray__": True, b"data": b"abc", b"dtype": "<f4", b"shape": [1]}}),
        msgpack.packb({"x": {b"__ndarray__": True, b"data": b"", b"dtype": "|O", b"shape": [0]}}),
        msgpack.packb({"x": {b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [-1, 0]}}),
        msgpack.packb({"x": {b"__ndarray__": True, b"data": b"", b"dtype": ["<f4"], b"shape": 3}}),
        msgpack.packb({"x": [{}] * 4000, "y": [{}] * 4000}),
    ],
)  # fmt: skip
def test_bytes_that_are_no_message(data):
    with pytest.raises(WireError):
        unpack(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_clear_error(data):
    try:
        assert isinstance(unpack(data), dict)
    except WireError as error:
        assert "\n" not in str(error)


def test_round_trips_with_their_packer():
    arrays = {
        "a": np.ones((2, 0, 3), np.uint8),
        "b": np.float32([1, 2]),
        "c": np.arange(3),
        "d": np.array([True]),
    }
    for there in (unpack(msgpack_numpy.packb(arrays)), msgpack_numpy.unpackb(pack(arrays))):
        for key, array in arrays.items():
            assert there[key].dtype == array.dtype and np.array_equal(there[key], array)
    assert unpack(msgpack_numpy.packb({"x": np.float32(2.5)})) == {"x": 2.5}


def test_a_key_of_no_camera_is_refused_at_the_start(checkpoint):
    actor, encoder, contract = load_policy(checkpoint, "cpu")
    with pytest.raises(
        UserError, match="serve.keys: found observation/image: top, expected one of hand, left"
    ):
        PolicyServer(actor, contract, 64, TOKEN, ServeSettings(keys={"observation/image": "top"}))
