"""A policy server on an open network: floods of unfinished connections, and TLS."""

import contextlib
import errno
import os
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from s2robot.serving.remote import PolicyLate, PolicyLost, RemoteError, RemotePolicy
from s2robot.serving.server import ALL, Gate, tls_of
from tests.envs.real.patience import wait_for
from tests.errors import raised, refuses
from tests.s2robot.serving.test_server import PATIENT, TOKEN, command, connect, observations, serving, url_of

# Opens connections from several addresses, sends half a request or nothing, and replaces closed ones. Prints a line once
# it has opened more connections than the server may have files, and exits at the end of its input.
FLOOD = """
import resource, select, socket, sys, time
port, count = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
held, made = [], 0
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        one = socket.create_connection(("127.0.0.1", port), 1, source_address=(f"127.0.0.{2 + made % 5}", 0))
        made += 1
        if made % 2:
            one.send(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n")
        held.append(one)
    except OSError:
        time.sleep(0.01)
    if made == count:
        print("flooded", flush=True)
    while len(held) > count:
        held.pop(0).close()
"""


@pytest.mark.parametrize("encrypted", [False, True])
def test_clients_are_served_during_a_flood_of_connections(slow_policy, certificate, tmp_path, encrypted):
    """A connected client gets its answers, and a new one is admitted, during the flood and after it."""
    files = [f"serve.{name}={file}" for name, file in keys(certificate).items()] if encrypted else []
    more = {"ca_file": certificate} if encrypted else {}
    seen = observations(1)[0]
    with command(slow_policy, tmp_path, "serve.open_s=2", *files) as (server, url, token):
        hard_limit = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (5 * ALL + 160, hard_limit))
        with RemotePolicy(url, token, PATIENT, PATIENT, **more) as client:
            expected = client.plan(seen)
            attack, pipe = [sys.executable, "-c", FLOOD, url.rpartition(":")[2], "600"], subprocess.PIPE
            with subprocess.Popen(attack, stdin=pipe, stdout=pipe, text=True) as process:
                assert process.stdout.readline() == "flooded\n"
                for _ in range(10):
                    client.reset()
                    np.testing.assert_array_equal(client.plan(seen), expected)
                client.close()
                with admitted(url, token, **more) as other:
                    np.testing.assert_array_equal(other.plan(seen), expected)
                process.communicate(timeout=PATIENT)
        with admitted(url, token, **more) as other:
            np.testing.assert_array_equal(other.plan(seen), expected)
        assert server.poll() is None


def admitted(url, token, **more):
    """Return a client, after the previous one has gone. It retries, because the flood also fills the system's queue."""
    end = time.monotonic() + PATIENT
    while True:
        try:
            return RemotePolicy(url, token, PATIENT, 5, **more)
        except RemoteError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def test_crowded_addresses_are_evicted_first(monkeypatch):
    """When too many connections are pending, or no file descriptor is left, an address with a single one keeps it."""
    monkeypatch.setattr("s2robot.serving.server.ALL", 6)
    with Gate(socket.AF_INET) as gate, contextlib.ExitStack() as stack:
        gate.bind(("127.0.0.1", 0))
        gate.listen(100)

        def connect(host):
            made = socket.create_connection(gate.getsockname(), PATIENT, source_address=(host, 0))
            stack.enter_context(made)
            stack.enter_context(gate.accept()[0])
            return made.getsockname()

        alone, *flood = [connect(f"127.0.0.{i}") for i in (1, 2, 2, 2, 3, 3, 3)]
        assert list(gate.pending) == [alone, *flood[1:]]
        accept, full = socket.socket.accept, [OSError(errno.EMFILE, "too many open files")]

        def once_full(gate):
            if full:
                raise full.pop()
            return accept(gate)

        monkeypatch.setattr(socket.socket, "accept", once_full)
        last = connect("127.0.0.3")
        assert not full and list(gate.pending) == [alone, flood[2], flood[5], last]
        gate.expire(60)
        assert alone in gate.pending
        gate.expire(0)
        assert not gate.pending


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A new certificate of 127.0.0.1, with its key in the same folder."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl")
    return made_certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1")


def made_certificate(folder, names):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=policy".split()
    command += ["-addext", f"subjectAltName={names}", "-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "certificate.pem"


def keys(certificate):
    return {"certificate": str(certificate), "key": str(certificate.with_name("key.pem"))}


def test_actions_are_the_same_with_tls(slow_policy, certificate, tmp_path):
    both = tmp_path / "both.pem"
    both.write_text(certificate.read_text() + certificate.with_name("key.pem").read_text())
    seen = observations(3)
    with serving(slow_policy) as (_, url, _), connect(url) as plain:
        expected = [plain.plan(one) for one in seen]
    with serving(slow_policy, certificate=str(both)) as (_, url, _):
        with connect(f"wss{url[2:]}", ca_file=certificate) as client:
            np.testing.assert_array_equal([client.plan(one) for one in seen], expected)
            big = {"hand": np.zeros((1000, 1000, 3), np.uint8), "left": np.zeros((64, 64, 3), np.uint8)}
            assert np.isfinite(client.plan({"images": big, "proprio": seen[0]["proprio"]})).all()
        raw = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), PATIENT)
        trust = ssl.create_default_context(cafile=certificate)
        with trust.wrap_socket(raw, server_hostname="127.0.0.1") as one:
            one.send(b"GET / HTTP/1.1\r\n\r\n")
            assert one.recv(100) and one.version() == "TLSv1.3" and not one.session.has_ticket


def test_incomplete_requests_end_their_thread(slow_policy, certificate):
    """Incomplete TLS handshakes, TLS records and requests."""
    trust = ssl.create_default_context(cafile=certificate)
    for encrypted in (keys(certificate), {}):
        with serving(slow_policy, open_s=0.5, **encrypted) as (_, url, _):
            before = threading.active_count()
            for start in (b"\x16\x03\x01\x02", b"\x17\x03\x03\x40\x00ab", b"GET / HTTP/1.1\r\n"):
                with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), PATIENT) as made:
                    if encrypted and start[0] == 0x17:
                        made = trust.wrap_socket(made, server_hostname="127.0.0.1")
                    os.write(made.fileno(), start)
                    with contextlib.closing(made), contextlib.suppress(OSError):
                        while made.recv(100):
                            pass
            wait_for(lambda limit=before: threading.active_count() <= limit)


def test_untrusted_peers_are_rejected(slow_policy, certificate, tmp_path):
    other = made_certificate(tmp_path, "DNS:somebody.example")
    with serving(slow_policy, **keys(certificate)) as (server, url, errors):
        for ca_file in (None, other):
            raised(PolicyLost, "certificate", RemotePolicy, f"wss{url[2:]}", TOKEN, ca_file=ca_file)
        with pytest.raises(RemoteError):  # a client that does not encrypt
            RemotePolicy(url, TOKEN, connect_s=2)
        assert server.session.calls == 0 and not errors
    with serving(slow_policy) as (_, url, _), pytest.raises(RemoteError):  # a server that does not
        RemotePolicy(f"wss{url[2:]}", TOKEN, connect_s=2, ca_file=certificate)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(PolicyLate):
        RemotePolicy(f"wss{url_of(silent)[2:]}", TOKEN, connect_s=0.3, ca_file=certificate)
    with serving(slow_policy, **keys(other)) as (_, url, _), pytest.raises(PolicyLost, match="127.0.0.1"):
        RemotePolicy(f"wss{url[2:]}", TOKEN, ca_file=other)


def test_invalid_certificate_files_are_one_error_line(certificate, tmp_path):
    text, locked = tmp_path / "text.pem", tmp_path / "locked.pem"
    text.write_text("no certificate")
    key = certificate.with_name("key.pem")
    command = ["openssl", "rsa", "-aes128", "-passout", "pass:secret", "-in", str(key), "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    invalid = ("none.pem", None), (str(text), None), (str(certificate), None), (str(certificate), str(locked))
    for files in invalid:
        refuses(r"^serve\.certificate: ", tls_of, *files)
    for ca_file in (tmp_path / "none.pem", text):
        refuses(r"^ca_file: ", RemotePolicy, "wss://127.0.0.1:1", TOKEN, ca_file=ca_file)
