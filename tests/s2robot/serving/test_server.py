"""A policy behind a real websocket: the same actions as locally, and a typed error by the deadline after any fault."""

import contextlib
import errno
import json
import os
import queue
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as plain_connect
from websockets.sync.server import serve as plain_serve

from s2robot.core.errors import UserError
from s2robot.loading import image_size_of, load_policy
from s2robot.serving import remote
from s2robot.serving import token as shared_secret
from s2robot.serving.remote import PolicyLate, PolicyLost, PolicyMalformed, PolicyRefused, RemotePolicy
from s2robot.serving.server import PolicyServer, ServeSettings, contract_text, listening, run_serve
from s2robot.serving.token import is_loopback, token_for
from s2robot.serving.wire import PROTOCOL, pack, unpack
from tests import forks
from tests.configs import composed
from tests.envs.real.patience import wait_for
from tests.errors import raised, refuses

CAMERAS, TOKEN = ("hand", "left"), "a-token-for-these-tests"
PATIENT, SOON = 30.0, 5.0  # s; deadlines that only a fault exceeds, even on a busy machine
TRANSFORMER = {"width": 16, "blocks": 1, "heads": 2, "dropout": 0.0, "action_history": True}
KINDS = {
    "chunks": {},
    "ensemble": {"ensemble": 0.1, "tasks": ("push", "pull")},
    "context": {"kind": "transformer", "context": 3, "network": TRANSFORMER},
}


@pytest.fixture(scope="module")
def checkpoints(save_untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: save_untrained(folder / kind, **changes) for kind, changes in KINDS.items()}


@pytest.fixture(scope="module")
def checkpoint(checkpoints):
    return checkpoints["chunks"]


def observations(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return [
        {
            "images": {name: rng.integers(0, 256, (64, 64, 3), np.uint8) for name in CAMERAS},
            "proprio": rng.normal(size=8).astype(np.float32),
            "task": "pull",
        }
        for _ in range(count)
    ]


class Stubborn:
    """An actor that blocks inside `waits()`, and raises after a plan if `fails` is set."""

    def __init__(self, checkpoint: Path):
        self.actor, self.go, self.fails = load_policy(checkpoint, "cpu")[0], threading.Event(), False
        self.go.set()

    def __getattr__(self, name):
        return getattr(self.actor, name)

    @contextlib.contextmanager
    def waits(self):
        self.go.clear()
        yield
        self.go.set()

    def plan(self, observation):
        assert self.go.wait(PATIENT)
        plan = self.actor.plan(observation)
        return 1 / 0 if self.fails else plan


def is_stopped(thread: Path) -> bool:
    """A thread that is stopped takes no more requests; on a busy machine, that may be after the signal was sent."""
    return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"


def late(policy, observation):
    raised(PolicyLate, "by the deadline", policy.plan, observation, deadline_s=0.2)


@contextlib.contextmanager
def serving(checkpoint: Path, actor=None, **settings):
    """Run a server in a thread; yield the server, its URL, and the list of errors that ended it."""
    own, encoder, contract = load_policy(checkpoint, "cpu")
    size, settings = image_size_of(contract, encoder), ServeSettings(port=0, **settings)
    server = PolicyServer(actor or own, contract, size, TOKEN, settings, listening(settings))
    ports, errors = queue.Queue(), []

    def work():
        try:
            server.run(ports.put)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield server, f"ws://127.0.0.1:{ports.get(timeout=60)}", errors
    finally:
        server.stop.set()
        thread.join(20)
        assert not thread.is_alive()


def connect(url: str, deadline_s: float = PATIENT, **more) -> RemotePolicy:
    return RemotePolicy(url, TOKEN, deadline_s, **({"connect_s": PATIENT} | more))


@contextlib.contextmanager
def plain(url: str, **more):
    """Yield the websocket of an admitted client that has read the metadata."""
    headers = {"Authorization": f"Api-Key {TOKEN}"}
    with plain_connect(url, additional_headers=headers, proxy=None, **more) as ws:
        unpack(ws.recv(timeout=PATIENT))
        yield ws


def request(number: int = 1, **changes) -> dict:
    observation = observations(1)[0]
    sent = {"images": observation["images"], "state": observation["proprio"], "reset": True}
    return sent | {"s2robot": {"id": number}} | changes


def ask(ws, message) -> dict:
    ws.send(pack(message) if isinstance(message, dict) else message)
    return unpack(ws.recv(timeout=PATIENT))


@pytest.mark.parametrize("kind", KINDS)
def test_actions_are_bit_equal_to_the_local_policy(checkpoints, kind):
    local, encoder, contract = load_policy(checkpoints[kind], "cpu")
    with serving(checkpoints[kind]) as (server, url, _), connect(url) as policy:
        assert policy.contract == contract and policy.cameras == CAMERAS
        assert policy.image_size == encoder.image_size == 64
        for episode in range(2):
            local.reset()
            policy.reset()
            for observation in observations(8, seed=episode):
                expected, action = local.act(observation), policy.act(observation)
                assert action.dtype == np.float32 and action.tobytes() == expected.tobytes()
            assert policy.server_s > 0
        calls = {"chunks": 3, "ensemble": 8, "context": 8}[kind]  # 3 of 4 actions a plan
        assert server.session.calls == 2 * calls
        local.reset()
        policy.reset()
        first, second = observations(2)
        assert np.array_equal(policy.plan(first), local.plan(first))
        assert np.array_equal(policy.act(second), local.act(second))
        assert np.array_equal(policy.plan(second), local.plan(second))  # the remaining actions


def test_each_episode_has_its_own_noise_repeatable_by_seed(save_untrained, tmp_path):
    folder = save_untrained(tmp_path / "policy", head={"kind": "flow", "width": 8, "layers": 1})
    local, _, _ = load_policy(folder, "cpu")
    (first, second), actor, seeds = observations(2), Stubborn(folder), set()
    with serving(folder, actor) as (_, url, _), connect(url) as policy:
        for retry in (False, True, False):
            policy.reset(seed=None if not retry else 7)
            if retry:  # a repeated first request of an episode has the same noise
                with actor.waits():
                    late(policy, first)
            local.reset(policy.seed)
            assert np.array_equal(policy.plan(first), local.plan(first))
            assert np.array_equal(policy.plan(second), local.plan(second))
            seeds.add(policy.seed)
    assert len(seeds) == 3 and 7 in seeds


@pytest.mark.parametrize("kind", KINDS)
def test_failed_call_leaves_no_trace(checkpoints, kind, capsys):
    """Neither a late answer nor a policy that fails after an observation affects later actions."""
    (local, _, _), actor = load_policy(checkpoints[kind], "cpu"), Stubborn(checkpoints[kind])
    first, unseen, *later = observations(6)
    with serving(checkpoints[kind], actor) as (server, url, _), connect(url) as policy:
        assert np.array_equal(policy.plan(first), local.plan(first))
        with actor.waits():
            late(policy, unseen)
        assert np.array_equal(policy.plan(later[0]), local.plan(later[0]))
        actor.fails = True
        raised(PolicyRefused, "the policy failed: ZeroDivisionError: ", policy.plan, unseen)
        actor.fails = False
        for observation in later[1:]:
            assert np.array_equal(policy.plan(observation), local.plan(observation))
        assert server.session.calls == 6  # the late one was computed
    assert "ZeroDivisionError" in capsys.readouterr().err  # the server's operator gets the traceback


def test_only_the_newest_waiting_request_is_answered(checkpoint):
    *old, last = observations(5)
    actor = Stubborn(checkpoint)
    with serving(checkpoint, actor) as (server, url, _), connect(url) as policy:
        with actor.waits():
            for observation in old:
                late(policy, observation)
            threading.Timer(0.5, actor.go.set).start()
            assert np.array_equal(policy.plan(last), load_policy(checkpoint, "cpu")[0].plan(last))
        assert server.session.calls == 2 and server.skipped == 3


def as_openpi(observation: dict) -> dict:
    images = {f"observation/{name}_image": image for name, image in observation["images"].items()}
    return {**images, "observation/state": observation["proprio"], "prompt": "pick up the cube"}


def test_openpis_client_gets_the_same_chunks(checkpoint):
    local, _, _ = load_policy(checkpoint, "cpu")
    with serving(checkpoint) as (server, url, _):
        client = WebsocketClientPolicy(url, api_key=TOKEN)
        metadata = client.get_server_metadata()
        assert metadata["sizes"] == {name: [64, 64] for name in CAMERAS}
        assert (metadata["actions"], metadata["action_dim"], metadata["rate_hz"]) == (3, 8, 10)
        good = observations(1)[0]
        answer = client.infer(as_openpi(good))
        assert answer["actions"].dtype == np.float32 and np.array_equal(answer["actions"], local.plan(good))
        assert answer["server_timing"]["infer_ms"] > 0
        assert ActionChunkBroker(client, action_horizon=3).infer(as_openpi(good))["actions"].shape == (8,)
        with pytest.raises(RuntimeError, match="camera 'hand'.* got 4 x 6 px"):
            client.infer(as_openpi(good) | {"observation/hand_image": np.zeros((4, 6, 3), np.uint8)})
        assert client.infer(as_openpi(good))["actions"].shape == (3, 8)  # the session continues
        client._ws.close()
        assert server.session.calls == 3


def test_openpis_client_starts_episodes_with_reset_and_survives_failures(checkpoints):
    (local, _, _), actor = load_policy(checkpoints["context"], "cpu"), Stubborn(checkpoints["context"])
    seen = observations(1)[0]
    local.reset()
    fresh, second = local.plan(seen), local.plan(seen)
    assert not np.array_equal(fresh, second)
    with serving(checkpoints["context"], actor) as (_, url, _):
        client = WebsocketClientPolicy(url, api_key=TOKEN)
        with contextlib.closing(client._ws):
            for reset in ({}, {"reset": True}):
                assert np.array_equal(client.infer(as_openpi(seen) | reset)["actions"], fresh)
                actor.fails = True
                raised(RuntimeError, "the policy failed", client.infer, as_openpi(seen))
                actor.fails = False
                assert np.array_equal(client.infer(as_openpi(seen))["actions"], second)


def test_wrong_token_is_rejected(checkpoint):
    with serving(checkpoint) as (_, url, _):
        for token in ("x" * 23, TOKEN + "x", TOKEN[:-1], "Api-Key"):
            with pytest.raises(PolicyRefused, match="HTTP 401") as caught:
                RemotePolicy(url, token, connect_s=PATIENT)
            assert TOKEN not in str(caught.value) and token not in str(caught.value).replace("Api-Key", "", 1)
        for token in (None, ""):
            refuses("^token: .*S2ROBOT_TOKEN", RemotePolicy, url, token)
        refuses("^token: .*got other characters$", RemotePolicy, url, f"{TOKEN}\n")
        with pytest.raises(InvalidStatus, match="403"), plain(url, origin="http://evil.example"):
            pass  # a web page, even with a valid token
        connect(url).close()


def test_one_client_at_a_time_and_an_idle_one_is_dropped(checkpoint):
    observation = observations(1)[0]
    with serving(checkpoint) as (server, url, _), connect(url) as first:
        raised(PolicyRefused, "busy: 127.0.0.1 port [0-9]+ has been connected", connect, url)
        first.act(observation)
        first.close()
        first.reset()
        raised(PolicyLost, "ended the connection", first.plan, observation)
        wait_for(lambda: server.client is None)
        connect(url).close()
    with serving(checkpoint, idle_s=0.3) as (server, url, _), connect(url) as policy:
        wait_for(lambda: server.client is None)
        for _ in range(2):
            raised(PolicyLost, "idle for 0.3 s", policy.act, observation)


def test_a_client_that_does_not_read_is_dropped(checkpoint):
    """Its answers fill the buffers, and the server waits only `open_s`."""
    with serving(checkpoint, open_s=1.0) as (server, url, _):
        connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
        with plain(url, sock=connection, max_queue=1) as ws:
            wait_for(lambda: server.client is not None)
            server.actor.plan = lambda observation: np.zeros((1_000_000, 8), np.float32)
            for number in range(1, 9):
                with contextlib.suppress(Exception):
                    ws.send(pack(request(number)))
                time.sleep(0.05)
            wait_for(lambda: server.client is None)


def test_bad_observations_are_answered_with_the_reason(checkpoint):
    frame = observations(1)[0]["images"]["left"]
    changes = [
        ({"images": 3}, "camera 'hand'"),
        ({"images": {"hand": frame, "left": frame[..., :1]}}, r"left: .*uint8 \(64, 64, 1\)"),
        ({"state": np.zeros(7, np.float32)}, r"proprio: expected 8 numbers, got shape \(7,\)"),
        ({"reset": False, "s2robot": {"id": 1, "used": 77}}, "used: .*, got 77"),
    ]
    actor = load_policy(checkpoint, "cpu").actor
    actor.batch.policy.normaliser.proprio.offset.fill_(100)
    with pytest.warns(match="100") as shown, serving(checkpoint, actor) as (server, url, _), plain(url) as ws:
        assert not len(shown)  # the warm-up leaves the warning of wrong units to clients
        for change, words in changes:
            assert ask(ws, request() | {"images": {}})["s2robot"] == {"id": 1}
            answer = ask(ws, request() | change)
            assert re.search(words, answer["error"]), answer["error"]
            assert answer["s2robot"] == {"id": 1} and "\n" not in answer["error"]
        assert server.session.calls == 0
        assert ask(ws, request(2))["actions"].shape == (3, 8)  # the session still works
        assert ask(ws, request(3, reset=False, s2robot={"id": 3, "used": 2}))["s2robot"] == {"id": 3}


def test_malformed_request_ends_the_session_but_not_the_server(checkpoint):
    numbers = 1, {"id": 0}, {"id": True}, {"id": 1.5}, {"id": 1, "used": -1}, {"used": 1}
    wrong = [b"", b"garbage", "text", b"\x90", *(pack({"s2robot": n}) for n in numbers), b"\0" * 1_200_000]
    with serving(checkpoint, max_message_mb=1) as (server, url, _):
        for message in wrong:
            with plain(url) as ws:
                with pytest.raises(ConnectionClosed) as caught:
                    ask(ws, message)
                assert caught.value.rcvd is None or caught.value.rcvd.code in (1003, 1009)
            wait_for(lambda: server.client is None)
        with connect(url) as policy:
            assert policy.act(observations(1)[0]).shape == (8,)


def test_damaged_bytes_end_no_more_than_a_session(checkpoint):
    rng, right = random.Random(0), pack(request())
    head = (
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Api-Key {TOKEN}\r\nUpgrade: websocket\r\n\r\n".encode()
    )
    with serving(checkpoint, open_s=1) as (server, url, errors):
        for _ in range(60):
            data = bytearray(rng.choice((right, head)))
            for _ in range(rng.randint(1, 6)):
                place = rng.randrange(min(len(data), 400))
                data[place : place + rng.choice((0, 1, 9, 999))] = rng.randbytes(rng.choice((0, 1, 9)))
            raw = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 5)
            with contextlib.suppress(OSError), raw:
                raw.sendall(data)
            with contextlib.suppress(ConnectionClosed), plain(url) as ws:
                ws.send(bytes(data))
                ws.recv(timeout=PATIENT)
            wait_for(lambda: server.client is None)
        with connect(url) as policy:
            assert policy.act(observations(1)[0]).shape == (8,)
        assert not errors


def test_client_validates_its_own_observations(checkpoint):
    with serving(checkpoint, max_message_mb=0.1) as (server, url, _), connect(url) as policy:
        observation = observations(1)[0]
        hand = {"hand": observation["images"]["hand"]}
        with pytest.raises(UserError, match="^observation: .*object"):
            policy.act(observation | {"images": dict.fromkeys(CAMERAS, np.array([object()]))})
        refuses("^deadline_s: .*got 0", policy.act, observation, deadline_s=0)
        with pytest.raises(PolicyRefused, match="proprio: expected finite numbers"):
            policy.act(observation | {"proprio": np.full(8, np.nan)})
        assert policy.act(observation).shape == (8,) and server.session.calls == 1
        for wrong, words in (({"proprio": None}, ""), ({"images": hand}, ".*camera 'left', got hand")):
            with pytest.raises(UserError, match=f"^observation: expected{words}"):  # even while a plan lasts
                policy.act(observation | wrong)
        policy.reset()
        with pytest.raises(UserError, match="at most 0.1 MB .*, got 0.2"):  # the server's limit
            policy.act(observation | {"images": dict.fromkeys(CAMERAS, np.zeros((200, 200, 3), np.uint8))})


def test_a_policy_that_hangs_stops_the_server(checkpoint):
    actor = Stubborn(checkpoint)
    with serving(checkpoint, actor, call_s=0.3) as (_, url, errors), connect(url) as policy, actor.waits():
        raised(PolicyLost, "the policy hangs", policy.act, observations(1)[0])
        wait_for(lambda: errors)
    assert isinstance(errors[0], UserError) and "0.3 s" in str(errors[0])


HELLO = {
    "s2robot": {"protocol": PROTOCOL}, "actions": 3, "action_dim": 8, "max_bytes": 10**9,
    "sizes": {name: [64, 64] for name in CAMERAS}, "contract": contract_text(
        {"encoder": {"fingerprint": ""}, "cameras": list(CAMERAS), "robot": "xarm7", "joint_names": [], "action_frame": "",
         "rate_hz": 10, "dataset": {}}
    ),
}  # fmt: skip
ACTIONS = np.zeros((3, 8), np.float32)


def answer(actions=ACTIONS, number=1, **more) -> bytes:
    return pack({"actions": actions, "s2robot": {"id": number}} | more)


@contextlib.contextmanager
def answering(*messages, read: bool = True):
    """Run a server that sends the first message on connection, then one message per request; yield its URL."""
    finished = threading.Event()

    def handle(ws):
        with contextlib.suppress(Exception):
            for number, message in enumerate(messages):
                if number and read:
                    ws.recv()
                for part in message if isinstance(message, list) else [message]:
                    ws.send(part)
            while read:
                ws.recv()
            finished.wait(20)

    settings = {"compression": None, "max_size": None, "max_queue": 1, "close_timeout": 0.1}
    with plain_serve(handle, "127.0.0.1", 0, **settings) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield url_of(server.socket)
        finished.set()
        server.shutdown()
        thread.join(10)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x93\x00", "not a message"), (b"\x92\x01\x02", "got list"), (pack({"actions": ACTIONS}), "expected answer 1, got a diff"),
        (answer(number=True), "expected answer 1, got a diff"), (answer([0.0] * 8), "got none"), (answer(ACTIONS[0]), r"\(8,\)"),
        (answer(ACTIONS[:0]), r"\(0, 8\)"), (answer(np.zeros((3, 7), "f4")), r"\(3, 7\)"), (answer(np.zeros((3, 8))), "float64"),
        (answer(np.full((3, 8), -np.inf, "f4")), "NaN or infinity"), (b"x" * 5_000_000, "not a message of a policy server"),
    ],
    ids=range(11),
)  # fmt: skip
def test_malformed_answers_are_one_error_line(data, words):
    with answering(pack(HELLO), data) as url, connect(url) as policy:
        with pytest.raises(PolicyMalformed, match=words) as caught:
            policy.act(observations(1)[0])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, kind, words",
    [*(({key: -1}, PolicyMalformed, "metadata") for key in HELLO if key != "s2robot"),
     *(({"contract": text}, PolicyMalformed, "metadata") for text in ("[" * 9999, "{}", HELLO["contract"].replace("10", "0"))),
     ({"s2robot": {"protocol": PROTOCOL + 1}}, PolicyRefused, "protocol"), ({"s2robot": None}, PolicyRefused, "got None")],
    ids=range(len(HELLO) + 4),
)  # fmt: skip
def test_metadata_without_a_known_protocol_is_rejected(change, kind, words):
    with answering(pack(HELLO | change)) as url, pytest.raises(kind, match=words):
        connect(url)


def test_contract_of_a_policy_of_many_demos_fits_into_a_message():
    lineage = {"positions": {"recorded": list(range(130_000))}, "unknown": []}
    text = contract_text({"robot": "xarm7", "lineage": lineage | {"episode_hashes": ["0" * 64] * 130_000}})
    assert len(text) < remote.MAX_ANSWER // 2 and json.loads(text) == {"robot": "xarm7", "lineage": lineage}


def test_a_flood_of_old_answers_does_not_delay_a_call():
    old = [answer()] * 400_000
    with answering(pack(HELLO), "an error", [*old, answer(ACTIONS + 1, 2)]) as url, connect(url) as policy:
        raised(PolicyRefused, "an error", policy.act, observations(1)[0])  # the form of openpi's servers
        begin = time.monotonic()
        with contextlib.suppress(PolicyLate):
            assert np.array_equal(policy.plan(observations(1)[0], deadline_s=0.2), ACTIONS + 1)
        assert time.monotonic() - begin < 1.5  # all of them take longer


def listener() -> socket.socket:
    """Return a port that accepts connections and sends nothing."""
    return socket.create_server(("127.0.0.1", 0))


def url_of(port: socket.socket) -> str:
    return f"ws://127.0.0.1:{port.getsockname()[1]}"


@contextlib.contextmanager
def greeting(words: bytes):
    """Yield the URL of a port that answers its first client's first message with `words`, then closes."""

    def greet():
        connection, _ = port.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(words)

    with listener() as port:
        threading.Thread(target=greet, daemon=True).start()
        yield url_of(port)


def test_missing_silent_and_foreign_servers_give_typed_errors():
    with listener() as closed:
        url = url_of(closed)
    raised(PolicyLost, "Connect", RemotePolicy, url, TOKEN)
    with listener() as silent, pytest.raises(PolicyLate, match="did not open the connection by the deadline"):
        RemotePolicy(url_of(silent), TOKEN, connect_s=0.2)
    for words, kind in ((b"SSH-2.0-OpenSSH_9.2\r\n", PolicyMalformed), (b"", PolicyLost)):
        with greeting(words) as url, pytest.raises(kind):
            connect(url)
    # following a redirect would reveal the token to another host
    moved = "HTTP/1.1 302 Found\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n"
    with listener() as elsewhere, greeting(moved.format(url_of(elsewhere)).encode()) as url:
        raised(PolicyRefused, "HTTP 302", connect, url)
        elsewhere.settimeout(0.1)
        with pytest.raises(TimeoutError):
            elsewhere.accept()
    for url in ("http://x:1", "ws://user:pass@x:1", "nonsense"):
        refuses("^policy url: expected ws://<host>:<port>", RemotePolicy, url, TOKEN)


def test_a_tunnel_whose_far_end_does_not_listen_is_a_lost_policy():
    with listener() as port:
        threading.Thread(target=lambda: [port.accept()[0].close() for _ in range(40)], daemon=True).start()
        for _ in range(40):
            with pytest.raises(PolicyLost):
                connect(url_of(port))


def test_a_server_without_terminal_serves_one_client_after_another(checkpoint, monkeypatch):
    def closed(*_, **__):
        raise OSError(errno.EIO, "closed terminal")

    monkeypatch.setattr("s2robot.serving.server.print", closed, raising=False)
    with serving(checkpoint, host="localhost") as (server, url, _):
        assert len(server._gates) == 1  # not ::1, too, which requires IPv6
        for _ in range(2):
            with connect(url) as policy:
                policy.plan(observations(1)[0])
            wait_for(lambda: server.client is None)


def test_a_used_port_is_reported_before_the_policy_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with listener() as used:
        cfg = composed("serve", f"serve.port={used.getsockname()[1]}", f"checkpoint={tmp_path}")
        refuses("^serve: 127.0.0.1 port .*: Address already in use", run_serve, cfg)


def test_a_server_that_does_not_read_delays_no_call_beyond_its_deadline():
    """Frames fill the socket's buffers; a call that blocked while sending would never end."""
    observation = observations(1)[0] | {"images": dict.fromkeys(CAMERAS, np.zeros((2048, 2048, 3), np.uint8))}
    with answering(pack(HELLO), read=False) as url, connect(url) as policy:
        for _ in range(3):
            begin = time.monotonic()
            raised(PolicyLate, "by the deadline", policy.act, observation, deadline_s=0.2)
            assert time.monotonic() - begin < SOON
        begin = time.monotonic()
        policy.close()
        policy.close()
        assert time.monotonic() - begin < SOON


def test_token_file_is_created_once_and_private_to_its_owner(tmp_path, monkeypatch):
    monkeypatch.delenv("S2ROBOT_TOKEN", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert shared_secret.read_token() is None
    token, path = token_for("127.0.0.1", None)
    assert path == str(tmp_path / "s2robot/token") and len(token) >= 32
    assert os.stat(path).st_mode & 0o777 == 0o600 and os.listdir(Path(path).parent) == ["token"]
    shared_secret.make_token(Path(path))
    assert token_for("localhost", None)[0] == token == shared_secret.read_token()
    os.chmod(path, 0o644)
    refuses("0644", shared_secret.read_token)
    for wrong in ("short", "a token with spaces in it"):
        monkeypatch.setenv("S2ROBOT_TOKEN", wrong)
        assert wrong not in str(refuses("^.S2ROBOT_TOKEN: ", shared_secret.read_token))
    monkeypatch.setenv("S2ROBOT_TOKEN", "x" * 20)
    assert token_for("127.0.0.1", None) == ("x" * 20, "$S2ROBOT_TOKEN")


def test_no_token_is_created_for_a_reachable_address(tmp_path, monkeypatch):
    monkeypatch.delenv("S2ROBOT_TOKEN", raising=False)
    for host in ("0.0.0.0", "", "::"):
        assert not is_loopback(host)
        refuses("^serve.host", token_for, host, str(tmp_path / "token"))
    assert not list(tmp_path.iterdir())
    assert all(map(is_loopback, ("127.0.0.1", "127.8.0.1", "::1", "localhost")))
    shared_secret.make_token(tmp_path / "token")
    assert len(token_for("0.0.0.0", str(tmp_path / "token"))[0]) >= 32
    refuses("^serve.host: ", is_loopback, "no such host.invalid")


# as a shell starts a job with `&`
BACKGROUND = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from s2robot.cli import main
sys.exit(main(sys.argv[1:]))
"""


@contextlib.contextmanager
def command(checkpoint: Path, folder: Path, *overrides: str, background: bool = False):
    """Run `s2robot serve` in a separate process; yield the process, its URL and its token."""
    env = {k: v for k, v in os.environ.items() if k != "S2ROBOT_TOKEN"} | {"XDG_CONFIG_HOME": str(folder)}
    process = forks.Popen(
        [sys.executable, *(("-c", BACKGROUND) if background else ("-m", "s2robot")), "serve", f"checkpoint={checkpoint}",
         "serve.port=0", "serve.device=cpu", *overrides],
        cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert re.search("policy at wss?://127.0.0.1:", line), line + process.stderr.read()
        assert process.stdout.readline().strip() == f"token: {folder / 's2robot/token'}"
        yield process, line.split()[-1], (folder / "s2robot/token").read_text().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def test_server_process_survives_a_pause_and_ends_on_ctrl_c(checkpoint, tmp_path):
    local, _, _ = load_policy(checkpoint, "cpu")
    with command(checkpoint, tmp_path, background=True) as (process, url, token):
        with RemotePolicy(url, token, PATIENT, PATIENT) as policy:
            first, second, third = observations(3)
            assert np.array_equal(policy.plan(first), local.plan(first))
            process.send_signal(signal.SIGSTOP)
            wait_for(lambda: all(map(is_stopped, Path(f"/proc/{process.pid}/task").iterdir())))
            late(policy, second)
            process.send_signal(signal.SIGCONT)
            assert np.array_equal(policy.plan(third), local.plan(third))
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
            raised(PolicyLost, "the server was stopped", policy.plan, third)
        assert process.stderr.read().strip() == "s2robot serve: interrupted"
        assert token not in process.stdout.read()
        files = [p for p in tmp_path.rglob("*") if p.is_file() and token in p.read_text(errors="replace")]
        assert files == [tmp_path / "s2robot/token"]  # no log or config contains it
