"""The driver of examples/own_arm against a server with its protocol."""

import json
import socketserver
import threading
import time
from functools import partial

import numpy as np
import pytest

from s2robot.envs.real.arms.driver import OK, REFUSED, XARM7_LIMITS
from s2robot.envs.real.arms.geometry import XArm7Points
from s2robot.envs.real.cameras.camera import CameraReader, ReplayCamera
from s2robot.envs.real.control.loop import ControlLoop, LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig, SafetyFilter
from s2robot.envs.real.control.supervisor import Supervisor
from s2robot.envs.real.control.watchdog import State
from s2robot.envs.tasks import import_class
from tests.envs.real.home import HOME, OWN, described
from tests.envs.real.patience import CALM
from tests.envs.real.virtual import NOISE
from tests.errors import fails


class Box(socketserver.ThreadingTCPServer):
    """The server side of the example's protocol: an arm that stays at its last target."""

    daemon_threads = allow_reuse_address = True

    def __init__(self):
        self.state = {"q_deg": np.degrees(HOME).tolist(), "dq_deg": [0.0] * 7, "tcp_mm_deg": [400, 0, 100, 180, 0, 0],
                      "opening": 1.0, "mode": 1, "error": 0}  # fmt: skip
        self.asked, self.enabled, self.late = [], False, []  # `late`: s, of the next answers
        super().__init__(("127.0.0.1", 0), Line)


class Line(socketserver.StreamRequestHandler):
    def handle(self):
        self.request.settimeout(None)  # the xArm SDK may leave a default of 1 s in the process
        box = self.server
        for line in self.rfile:
            request = json.loads(line)
            do, answer = request["do"], {"code": 0}
            box.asked.append(do)
            if do == "state":
                answer = box.state
            elif do == "move":
                answer = {"code": 0 if box.enabled else 9}
                box.state |= {"q_deg": request["q_deg"], "opening": request["opening"]} if box.enabled else {}
            else:
                box.enabled = do == "enable"
            time.sleep(box.late.pop() if box.late else 0)
            self.wfile.write(json.dumps(answer).encode() + b"\n")


@pytest.fixture
def box():
    with Box() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def driver(monkeypatch):
    monkeypatch.syspath_prepend(OWN)
    return import_class(described("ur5e").driver)


@pytest.fixture
def arm(box, driver):
    arm = driver("{}:{}".format(*box.server_address), XARM7_LIMITS)
    arm.connect(10.0)
    yield arm
    arm.close()


def test_example_driver_runs_an_episode(arm, box):
    camera = CameraReader("hand", lambda: ReplayCamera(NOISE.__getitem__, len(NOISE), 30))
    camera.start(60.0)
    arm.arm()
    safety = SafetyFilter(arm.limits, XArm7Points(), SafetyConfig(state_age_max=3.0))
    slowly = np.append(np.full(7, 0.01), 0.0)
    config = LoopConfig(live=True, image_size=16)
    result = ControlLoop(arm, {"hand": camera}, lambda o: slowly, safety, config, CALM).run(3)
    camera.close()
    assert (result.cause, result.state) == ("steps", State.IDLE)
    np.testing.assert_allclose(arm.read().q, HOME + 0.03, atol=5e-3)


def test_example_driver_rejects_bad_targets_stops_and_never_clears(arm, box, driver):
    assert arm.command(HOME, None).code == REFUSED  # not armed
    arm.arm()
    nan = np.full(7, np.nan)
    for q, gripper in ((nan, None), (HOME + 1, None), (HOME[:6], None), (HOME, 1.5), (HOME, np.nan)):
        assert arm.command(q, gripper).code == REFUSED and "move" not in box.asked
    assert arm.command(HOME, 0.5).code == OK
    assert arm.stop("test")
    assert box.asked[-1] == "stop" and arm.command(HOME, None).code == REFUSED
    box.state["error"] = 31
    fails("error 31 pending", arm.arm)
    arm.close()
    fails("connect first", arm.read)
    assert not arm.stop("never raises")
    fails("expected an arm, got none", driver("127.0.0.1:1", XARM7_LIMITS).connect, 1.0)


def test_supervisor_watches_the_example_driver_which_recovers_from_a_late_answer(box, driver, monkeypatch):
    """The supervisor's driver never reads, and a link is reopened once a request over it has failed."""
    make = partial(driver, "{}:{}".format(*box.server_address), XARM7_LIMITS)
    with Supervisor(make, limit_s=60.0) as supervisor:
        supervisor.beat()
        time.sleep(0.2)
        supervisor.beat()
        assert supervisor.stop() and box.asked == ["stop"]
    monkeypatch.setattr(driver, "answer_s", 1.0)
    with make() as arm:
        arm.connect(10.0)
        box.late.append(2.0)
        fails("expected a response, got none", arm.read)
        assert arm.stop("after a late answer") and arm.read().q == pytest.approx(HOME)
