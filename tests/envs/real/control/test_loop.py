"""The control loop with an arm that follows its commands, and one fault at a time, in virtual time."""

from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from s2robot.demos.store import EpisodeStore
from s2robot.deployment.policy import Policy
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.geometry import XArm7Points
from s2robot.envs.real.control.loop import ControlLoop, LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig, SafetyFilter
from s2robot.envs.real.control.subscriber import EpisodeRecorder
from s2robot.envs.real.control.watchdog import UNSURE, State
from tests.envs.real.home import HOME
from tests.envs.real.patience import CALM
from tests.envs.real.virtual import NOISE, SLOWLY, Calls, FakeArm, Film
from tests.errors import fails
from tests.s2robot.pictures import attributes_of

POINTS = XArm7Points()


@pytest.fixture
def cameras(clock):
    return {"hand": Film(clock, NOISE)}


def made(arm, cameras, act, limits=CALM, live=True, subscribers=(), config=None, disagreement=lambda: 0.0):
    safety = SafetyFilter(arm.limits, POINTS, SafetyConfig(state_age_max=1.0))
    settings = LoopConfig(live=live, image_size=8, **{"policy_hz": 20.0} | (config or {}))
    return ControlLoop(arm, cameras, act, safety, settings, limits, subscribers, arm.clock, disagreement)


def test_actions_move_the_arm_and_are_recorded(arm, cameras, tmp_path):
    seen, resets = [], []

    def act(observation):
        seen.append(observation)
        return SLOWLY

    with EpisodeStore.create(tmp_path / "real.zarr", attributes_of(("hand",))) as store:
        recorder = EpisodeRecorder(store)
        loop = made(arm, cameras, act, subscribers=[recorder, Calls(begin=lambda: resets.append(len(seen)))])
        result = loop.run(max_steps=6)
        assert recorder.finish(success=True, seed=3) == 6 and len(recorder) == 0
    assert (result.state, result.cause, result.steps) == (State.IDLE, "steps", 6)
    assert resets == [1]  # after the warm-up, before the first action
    arm.lawful()
    assert arm.stops == [] and not loop.safety.dq_last.any()
    np.testing.assert_allclose(arm.q, HOME + 6 * 0.01, atol=1e-6)
    assert arm.gripper == 0.0
    assert len(result.latencies) == 6
    image, proprio = seen[0]["images"]["hand"], seen[0]["proprio"]
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(proprio, np.append(HOME, 1.0).astype(np.float32))

    store = EpisodeStore.open(tmp_path / "real.zarr")
    episode = store.episode(0)
    assert store.meta("success").tolist() == [True] and store.meta("seed").tolist() == [3]
    assert episode["images_hand"].shape == (6, 8, 8, 3) and episode["camera_age"].shape == (6, 1)
    np.testing.assert_allclose(episode["action"], np.tile(SLOWLY, (6, 1)), atol=1e-6)
    np.testing.assert_allclose(episode["action_sent"][:, :7].sum(0), arm.q - HOME, atol=1e-5)
    assert (np.diff(episode["time"]) > 0).all() and (episode["time_action"] >= episode["time"]).all()
    assert not episode["verdict"].any() and not episode["code"].any()


def test_gripper_command_is_held_for_a_minimum_number_of_actions(arm, cameras):
    """A policy that flips its gripper command with each action takes effect from the third action after a change."""
    steps, answers = [], []

    def act(observation):
        answers.append(float(len(answers) % 2))
        return np.append(np.full(7, 0.01), answers[-1])

    loop = made(arm, cameras, act, subscribers=[Calls(step=steps.append)], config={"gripper_hold": 2})
    loop.run(max_steps=12)
    assert [float(step["action_raw"][7]) for step in steps] == answers[1:13] == [1.0, 0.0] * 6
    assert [float(step["action"][7]) for step in steps] == [1, 1, 1, 0, 0, 0] * 2
    assert arm.gripper == 1.0


def test_camera_stall_during_warm_up_is_waited_out(arm, cameras):
    """A warm-up that starves the cameras is not a fault: the loop waits for fresh frames again."""
    limits, calls = CALM.replace(camera_hold=0.2), []

    def act(observation):
        calls.append(arm.clock.now())
        if len(calls) == 1:
            age = cameras["hand"].age
            cameras["hand"].age = lambda now: age(now) + (9.0 if now < calls[0] + 0.5 else 0.0)
        return SLOWLY

    result = made(arm, cameras, act, limits).run(max_steps=3)
    assert (result.cause, result.steps) == ("steps", 3) and calls[1] > calls[0] + 0.5


def test_stop_while_an_episode_comes_to_rest_is_not_lost(arm, cameras):
    """The loop waits for the arm's answers at the end of an episode; a stop in that time is a new one."""
    loop = made(arm, cameras, lambda o: SLOWLY)
    release = loop._release
    loop._release = lambda episode: (loop.request_stop(), release(episode))
    assert loop.run(max_steps=1).cause == "stopped" and arm.stops == ["operator"]


@pytest.mark.parametrize("when", ["between two periods", "before the command", "in the command"])
def test_loop_does_not_move_the_arm_after_a_gap(arm, cameras, clock, when):
    """A suspended process or machine may wake at any point of its period."""
    gone, gap = [], 1.0

    def suspend(here):
        if here == when and len(arm.sent) > 30 and not gone:
            gone.append(len(arm.sent))
            clock.sleep(gap)

    command = arm.command
    arm.command = lambda q, gripper: (command(q, gripper), suspend("in the command"))[0]
    subscriber = Calls(beat=lambda: suspend("between two periods"))
    limits = CALM.replace(state_hold=0.2, state_fault=0.25)
    loop = made(arm, cameras, lambda o: SLOWLY, limits=limits, subscribers=[subscriber])
    follow = loop.stream.next
    loop.stream.next = lambda *inputs: (follow(*inputs), suspend("before the command"))[0]
    result = loop.run(max_steps=80)
    assert (result.cause, result.state) == ("fault", State.FAULT)
    assert len(arm.sent) == gone[0] and len(arm.stops) == 1
    fails("got fault", loop.run, max_steps=1)


class Blocked(FakeArm):
    """An obstacle blocks joint 7 at `wall`."""

    wall = HOME[6] + 0.03

    def read(self):
        state = super().read()
        return replace(state, q=np.append(state.q[:6], min(state.q[6], self.wall)))


def test_arm_pressing_on_an_obstacle_is_led_back_within_limits(clock, cameras):
    arm, beats, slow = Blocked(clock), [], []
    beat = Calls(beat=lambda: beats.append(clock.now()))
    loop = made(arm, cameras, lambda o: np.eye(8)[6] * 0.04, subscribers=[beat])
    release, stall = loop._release, lambda arm: len(slow) < 2 and slow.append(clock.sleep(0.24))
    loop._release = lambda episode: (setattr(arm, "silent", stall), release(episode))
    result = loop.run(max_steps=3)
    assert np.diff(beats).max() < 0.3  # the supervisor stops the arm after that
    assert (result.state, result.cause) == (State.IDLE, "steps") and arm.stops == []
    assert max(q[6] for q in arm.sent) > arm.wall + 0.05
    np.testing.assert_allclose(arm.sent[-1], np.append(HOME[:6], arm.wall), atol=1e-3)
    arm.lawful()


@pytest.mark.parametrize(("blocked", "live"), [(False, True), (True, True), (False, False)])
def test_nothing_is_sent_at_the_end_after_a_gap(clock, cameras, blocked, live):
    """A process that was suspended while braking or leading the arm back does not move it after resuming."""
    arm, at = Blocked(clock) if blocked else FakeArm(clock), []

    def beat():
        under_way = loop.stream.step is not None and loop._end
        if under_way and not loop.safety.dq_last.any() == blocked and not at:
            at.append(len(arm.sent))
            clock.sleep(30.0)

    act = lambda o: (loop.steps < 4 or loop.request_end(), np.eye(8)[6] * 0.04)[1]  # noqa: E731
    loop = made(arm, cameras, act, CALM.replace(state_hold=1.0, state_fault=1.0), live, [Calls(beat=beat)])
    result = loop.run(max_steps=100)
    assert at and len(arm.sent) == at[0] and (at[0] > 10) == live
    assert result.state == State.FAULT and "did not run for 3" in result.reasons[0]
    assert len(arm.stops) == live  # a dry run sends nothing: somebody else may be using the arm


def test_large_action_is_clipped_to_the_simulated_range(arm, cameras):
    steps = []
    made(arm, cameras, lambda o: np.eye(8)[6] * 9, subscribers=[Calls(step=steps.append)]).run(1)
    assert steps[0]["action"][6] == pytest.approx(0.25) and steps[0]["action_raw"][6] == 9.0
    arm.lawful()


FAR = np.eye(8)[6] * 0.3  # beyond the limit of an action
OUT = np.eye(8)[0] * 0.15  # to the left, out of the workspace
STOPPED = [
    ([SLOWLY, FAR], "action 2 of the 2 planned breaks a limit (bridge.loop.max_delta)"),
    ([SLOWLY, SLOWLY, np.eye(8)[6] * 0.2], "action 3 of the 3 planned breaks a limit (speed: joint 7)"),
    ([OUT] * 10, "action 7 of the 10 planned breaks a limit (box: "),
    ([np.eye(8)[6] * 0.08] * 5, "action 4 of the 5 planned breaks a limit (range: joint 7)"),
]


@pytest.mark.parametrize(("chunk", "reason"), STOPPED)
def test_chunk_that_would_break_a_limit_stops_the_arm_before_motion(clock, cameras, chunk, reason):
    start = HOME.copy()
    start[6] = XARM7_LIMITS.q_max[6] - XARM7_LIMITS.margin - 0.25 if "range" in reason else HOME[6]
    for checks in (True, False):
        arm = FakeArm(clock, start)
        calls: list[int] = []
        act = lambda o: (calls.append(1), np.stack(chunk if len(calls) > 1 else [SLOWLY]))[1]  # noqa: E731, B023
        result = made(arm, cameras, act, config={"check_chunks": checks, "policy_hz": 10.0}).run(max_steps=1)
        moved = bool(arm.sent) and np.abs(arm.sent - start).max() > 1e-9
        assert moved is not checks and result.steps == (not checks)
        assert result.cause == ("fault" if checks else "steps") and len(arm.stops) == checks
        assert not checks or result.reasons[0].startswith(reason)


def crash():
    raise RuntimeError("cuda is gone")


def answers(act):
    """Replace the policy's answers with `act`."""
    return lambda arm, film: act


def put(**change):
    """Set attributes of the arm that make it faulty."""
    return lambda arm, film: vars(arm).update(change)


def pushed_in_a_hold(arm, film):
    film.end()
    read, begin = arm.read, arm.clock.now()
    arm.read = lambda: replace(read(), q=arm.q + 0.3 * (arm.clock.now() > begin + 0.5) * np.eye(7)[1])


@pytest.mark.parametrize(
    "breaks, limits, reason",
    [
        (put(error=31), {}, "arm error 31"), (put(mode=0), {}, "mode 0, expected 1"), (put(code=1), {}, "command code 1"),
        (put(silent=lambda arm: True), {"state_hold": 0.1, "state_fault": 0.4}, "joint state is gone"),
        (lambda arm, film: film.end(), {"camera_hold": 0.3, "camera_fault": 0.8}, "camera hand is gone"),
        (pushed_in_a_hold, {"camera_hold": 0.1, "camera_fault": 9.0}, "safety stop: joint 2 lags"),
        (answers(crash), {}, "policy: RuntimeError: cuda is gone"), (answers(lambda: np.full(8, np.nan)), {}, "policy: expected finite numbers"),
        (answers(lambda: np.zeros(7)), {}, "policy: expected 8 numbers, got an action float64 (7,)"),
        (answers(lambda: None), {}, "policy: expected 8 numbers, got an action object"),
        (answers(lambda: np.eye(8)[0] * 0.25), {}, "safety stop: clamped"),  # out of the workspace, to the left
    ],
)  # fmt: skip
def test_failures_in_motion_are_faults_at_once_or_after_a_hold(arm, cameras, breaks, limits, reason):
    sent_at, answer = [], [lambda: SLOWLY]

    def act(observation):
        if len(arm.sent) > 15 and not sent_at:
            sent_at.append(len(arm.sent))
            answer.append(breaks(arm, cameras["hand"]) or answer[0])
        return answer[-1]()

    loop = made(arm, cameras, act, CALM.replace(**limits))
    result = loop.run(max_steps=500)
    assert (result.state, result.cause) == (State.FAULT, "fault") and len(arm.stops) == 1
    assert any(why.startswith(reason) for why in result.reasons)
    assert (State.HOLD in [state for _, state, _ in loop.watchdog.history]) == bool(limits)
    assert limits or "clamped" in reason or len(arm.sent) <= sent_at[0] + 2
    assert np.isfinite(arm.sent).all()
    arm.lawful()
    fails("got fault", loop.run, max_steps=1)  # latched: no second episode
    if len(set(answer)) > 1:  # the arm is in order
        loop.watchdog.clear(arm.clock.now())
        arm.arm(), answer.append(lambda: SLOWLY)
        assert loop.run(max_steps=1).cause == "steps"


def unsure(arm, cameras, apart, takes=0.0, config=None):
    """Return a loop, the numbers of its executed actions, and the disagreement of each policy call so far.

    The calls disagree by `apart`, in order, and then by 0."""
    apart, calls, executed = iter(apart), [], []

    def act(observation):
        arm.clock.sleep(takes)
        calls.append(next(apart, 0.0))
        return np.append(np.full(7, 0.01 + 1e-6 * len(calls)), 1.0)

    counter = Calls(step=lambda step: executed.append(int(round((step["action_raw"][0] - 0.01) / 1e-6))))
    limits, latest = CALM.replace(disagreement=0.05, hold_fault=20.0), lambda: calls[-1] if calls else 0.0
    loop = made(arm, cameras, act, limits, subscribers=[counter], config=config, disagreement=latest)
    return loop, executed, calls


def test_arm_holds_while_members_disagree_and_resumes_when_they_agree(arm, cameras):
    loop, _, calls = unsure(arm, cameras, [0.0, 0.0, 0.0, 0.3, 0.2, 0.1])  # the first warms up
    result = loop.run(max_steps=4)
    assert (result.state, result.cause, result.steps) == (State.IDLE, "steps", 4)
    states = [(state, reasons) for _, state, reasons in loop.watchdog.history]
    hold = (State.HOLD, (UNSURE,))
    assert states.count(hold) == 1 and states[states.index(hold) + 1] == (State.RUNNING, ())
    arm.lawful()
    # uncertain actions were not executed, and the arm braked on the way to the previous target
    moved = arm.q - HOME
    assert (0.03 < moved).all() and (moved <= 0.04 + 1e-4).all()
    assert len(calls) == 1 + 4 + 3 and arm.stops == []


def test_plan_that_ends_a_hold_is_executed_from_its_first_action(arm, cameras):
    """However long it takes, the hold waits for an answer to an observation made during the hold."""
    loop, executed, _ = unsure(arm, cameras, [0.0, 0.0, 0.3, 0.3], 0.03, {"policy_hz": 10.0})
    loop.run(max_steps=3)
    assert executed == [2, 5, 6]


def test_plan_is_dropped_with_its_first_action(arm, cameras, clock):
    """The arm holds while it waits for the late third plan, and does not execute that plan from its second action on."""
    plan, calls, executed = [], count(1), []

    def act(observation):
        if not plan:
            clock.sleep(0.4 * ((call := next(calls)) == 3))
            plan.extend(10 * call + i for i in range(2))
        return SLOWLY + 1e-6 * plan.pop(0) * np.eye(8)[6]

    policy = Policy(act, None, {}, 8, None, plan.clear, SimpleNamespace(replan=plan.clear))
    note = Calls(
        begin=plan.clear, step=lambda step: executed.append(round((step["action_raw"][6] - 0.01) * 1e6))
    )
    made(arm, cameras, act, CALM.replace(policy_hold=0.15), subscribers=[policy, note]).run(max_steps=5)
    assert executed == [20, 21, 40, 41, 50]


def test_late_policy_holds_and_hung_policy_is_a_fault_blocking_new_episodes(arm, cameras, clock):
    released, active, calls = [], [], []

    def act(observation):
        active.append(1)
        calls.append(len(active))
        if len(calls) == 4:
            clock.sleep(0.4)
        if len(calls) == 7:
            clock.wait_for(lambda: released, 60.0)
        active.pop()
        return SLOWLY

    limits = CALM.replace(policy_hold=0.15, policy_fault=0.6)
    loop = made(arm, cameras, act, limits, config={"warm_up_s": 0.3})
    assert loop.run(max_steps=100).reasons == ("policy is gone",) and len(arm.stops) == 1
    states = [state for _, state, _ in loop.watchdog.history]
    assert State.RUNNING in states[states.index(State.HOLD) :]  # it resumed after the first delay
    arm.lawful()
    loop.watchdog.clear(clock.now())
    arm.arm(), arm.stops.clear()
    sent, beats = len(arm.sent), []
    loop.subscribers.append(Calls(beat=lambda: beats.append(1)))
    fails("no answer within 0.3 s; nothing has moved", loop.run, max_steps=1)
    assert len(arm.sent) == sent and len(beats) > 2
    released.append(True), arm.arm(), arm.stops.clear()
    clock.sleep(0.1)
    assert loop.run(max_steps=1).cause == "steps"
    assert max(calls) == 1  # never more than one at a time


@pytest.mark.parametrize("where", ["read", "command"])
@pytest.mark.parametrize("state_hold", [0.1, 1.0])
def test_loop_does_not_catch_up_after_a_wire_stall(arm, clock, cameras, where, state_hold):
    """One call in a fast motion takes 190 ms."""
    read, command, stalled, received = arm.read, arm.command, [], []

    def stall(here):
        moving = len(arm.sent) > 30 and np.abs(arm.sent[-1] - arm.sent[-2]).max() > 0.005
        if here == where and moving and not stalled:
            stalled.append(len(arm.sent))
            clock.sleep(0.19)

    def slow_read():
        requested = clock.now()
        stall("read")
        return replace(read(), t_mono=requested)

    def slow_command(q, gripper):
        done = command(q, gripper)
        stall("command")
        received.append(clock.now())
        return replace(done, t_ack=received[-1])

    arm.read, arm.command = slow_read, slow_command
    fast = np.append(np.full(7, 0.03), 0.0)  # 0.6 rad/s
    loop = made(arm, cameras, lambda o: fast, CALM.replace(state_hold=state_hold))
    result = loop.run(max_steps=15)
    assert (result.state, result.cause) == (State.IDLE, "steps")
    held = State.HOLD in [state for _, state, _ in loop.watchdog.history]
    assert held or not (where == "read" and state_hold == 0.1)
    arm.lawful()
    (k,) = stalled
    if where == "command":  # the box may have received the stalled command only at its end
        assert arm.times[k] - received[k - 1] >= 1 / XARM7_LIMITS.rate_hz - 1e-4
    else:  # the arm stood still: the stream starts from rest
        first = np.abs(arm.sent[k] - arm.sent[k - 1]).max()
        assert first <= max(XARM7_LIMITS.ddq_max) / XARM7_LIMITS.rate_hz**2 + 1e-9
        assert np.abs(arm.sent[k - 1] - arm.sent[k - 2]).max() > 2 * first  # it was in motion


def test_one_late_period_at_a_low_rate_is_no_rest(clock, cameras):
    arm, n = FakeArm(clock, limits=XARM7_LIMITS.replace(rate_hz=25, step_max=0.4)), count()
    arm.silent = lambda arm: next(n) % 4 == 0 and clock.sleep(0.012)
    turn = lambda o: np.append(np.zeros(6), [0.2 if len(arm.sent) // 12 % 2 else -0.2, 1.0])  # noqa: E731
    made(arm, cameras, turn, config={"policy_hz": 10.0}).run(24)
    arm.lawful()


def test_frozen_camera_is_detected_while_the_arm_moves(arm, clock):
    reader = Film(clock, NOISE[:1])
    config = {"frozen_s": 0.3, "frozen_motion": 0.02}
    still = made(arm, {"hand": reader}, lambda o: np.zeros(8), config=config).run(max_steps=20)
    assert still.cause == "steps"  # a static image of an arm at rest is no fault
    result = made(arm, {"hand": reader}, lambda o: SLOWLY, config=config).run(max_steps=200)
    assert result.reasons == ("camera hand is frozen",) and result.state == State.FAULT


@pytest.mark.parametrize(
    "act, ends, reason",
    [(crash, False, "cuda is gone; nothing has moved"), (lambda: SLOWLY, True, "camera hand is stale; camera hand: unplugged"),
     (None, False, "no answer within 0.2 s; nothing has moved")],
)  # fmt: skip
def test_failures_before_the_start_move_nothing(arm, cameras, act, ends, reason):
    if ends:
        arm.clock.at(0.05, cameras["hand"].end)  # during the policy's first, slow answer
    answer, began, config = act or (lambda: arm.clock.sleep(1)), [], {"ready_s": 1e9, "warm_up_s": 0.2}
    act = lambda o: (arm.clock.sleep(0.15 * ends), answer())[1]  # noqa: E731
    begin = Calls(begin=lambda: began.append(1))
    loop = made(arm, cameras, act, CALM.replace(camera_hold=0.05), config=config, subscribers=[begin])
    fails(reason, loop.run, 1)
    assert arm.sent == [] and began == []


def test_blocked_joint_is_a_fault_even_with_small_policy_steps(arm, cameras):
    arm.stuck = True
    more = np.append(0.07 * np.eye(7)[6], 0)
    result = made(arm, cameras, lambda o: o["proprio"] + more, config={"absolute": True}).run(100)
    assert result.cause == "fault" and "joint 7 lags 0.07 rad" in result.reasons[0]
    arm.lawful()
