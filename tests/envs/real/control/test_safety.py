"""The safety filter keeps its output within limits for every input."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from benchmarks.safety import HOME, LIMITS, MOODS, NASTY, WRONG, Attacker, Judge
from s2robot.envs.real.arms.driver import XARM7_LIMITS, ArmState
from s2robot.envs.real.arms.geometry import ArmPoints, XArm7Points
from s2robot.envs.real.arms.model import ModelPoints
from s2robot.envs.real.control.motion import Interpolator
from s2robot.envs.real.control.safety import SafetyConfig, SafetyFilter, Verdict
from s2robot.envs.real.control.stream import CommandStream, LoopConfig
from tests.envs.real.home import described
from tests.errors import fails

POINTS = XArm7Points()
SEEDS = st.integers(0, 2**32 - 1)
MOVES = st.lists(st.tuples(st.sampled_from(MOODS), st.integers(1, 40)), max_size=6)
SLOW = XARM7_LIMITS.replace(dq_max=(0.5,) * 7, ddq_max=(5.0,) * 7, point_speed=0.25)
UR5E, PANDA = described("ur5e"), described("panda")
# start, limits and points: the xArm7's built-in kinematics, models of six and seven joints, and no model
ARMS = {
    "xarm7": (HOME, XARM7_LIMITS, POINTS), "xarm7 with walls": (HOME, LIMITS, POINTS), "slow xarm7": (HOME, SLOW, POINTS),
    "ur5e": (UR5E.start, UR5E.limits(), ModelPoints(UR5E)), "panda": (PANDA.start, PANDA.limits(), ModelPoints(PANDA)),
    "ur5e without a model": (UR5E.start, UR5E.limits(), ArmPoints()),
}  # fmt: skip
of_each_arm = pytest.mark.parametrize("arm", ARMS)


def started(q=HOME, limits=XARM7_LIMITS, points=POINTS, **settings) -> SafetyFilter:
    safety = SafetyFilter(limits, points, SafetyConfig(**settings))
    safety.reset(q)
    return safety


def attack(safety, attacker, judge, mood, count):
    """Assert that every output is within limits."""
    attacker.new_mood()
    attacker.mood = mood
    for _ in range(count):
        safe = safety(*attacker.inputs())
        assert judge.faults(safe.q, safe.gripper) == []


def send(safety, target, gripper=0.5, measured=None, age=0.0):
    return safety(target, gripper, safety.q_last if measured is None else measured, age)


@pytest.mark.parametrize("arm", ["xarm7", "ur5e"])
@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-0.1, 0.1), min_size=7, max_size=7), st.floats(0.2, 0.6))
def test_target_below_the_table_is_raised_without_turning_or_shifting(arm, offset, down):
    """`down` bends the shoulder forward until the hand is up to 10 cm below the table."""
    home, limits, points = ARMS[arm]
    safety, hand = started(home, limits, points), points.in_box
    table = limits.table_z + limits.table_clearance
    q = home + offset[: limits.joints]
    q[1] += down
    before, raised = points.at(q), safety.above_table(q)
    after = points.at(raised)
    if raised is q:
        assert (before[:, 2] - points.radius).min() > table + 1e-3
        return
    assert (after[:, 2] - points.radius).min() > table
    moved = (after - before)[hand]  # (P, 3)
    assert np.ptp(moved, axis=0).max() < 5e-3  # all points of the hand move equally
    assert np.abs(moved[:, :2]).max() < 1e-2 and moved[:, 2].min() > 0


@of_each_arm
@settings(max_examples=15, deadline=None)
@given(SEEDS, MOVES, st.lists(st.sampled_from(NASTY), max_size=3))
def test_no_output_is_outside_limits(arm, seed, moods, nasty):
    """A sequence of moods, then hostile inputs, then braking to rest."""
    home, limits, points = ARMS[arm]
    safety = started(home, limits, points, clamps_max=10_000)
    judge = Judge(limits, points, home)
    attacker = Attacker(safety, np.random.default_rng(seed))
    for mood, count in moods:
        attack(safety, attacker, judge, mood, count)
    for kind in nasty:
        safe = safety(*attacker.inputs(kind))
        assert judge.faults(safe.q, safe.gripper) == []
    for _ in range(40):
        safe = send(safety, np.full(limits.joints, np.nan))
        assert safe.verdict == Verdict.STOP and judge.faults(safe.q, safe.gripper) == []
    assert not safety.dq_last.any()


@of_each_arm
@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.02, 0.25]), st.integers(4, 30))
def test_the_interpolator_never_jumps(arm, seed, faults, period):
    """As in the loop: wild actions raised above the table, clamps that are followed, holds, late periods."""
    rng, (home, limits, points) = np.random.default_rng(seed), ARMS[arm]
    safety, path = started(home, limits, points, clamps_max=10_000), Interpolator(limits)
    path.reset(home)
    now, commanded, clamped = 0.0, home, False
    low, high = np.add(limits.q_min, limits.margin), np.subtract(limits.q_max, limits.margin)
    push = rng.uniform(-0.25, 0.25, limits.joints)
    for k in range(200):
        now += safety.dt + (rng.random() < faults) * rng.uniform(0, 0.3)
        if rng.random() < faults:  # the watchdog holds
            safe = safety.hold("policy is late")
            path.reset(safe.q)
            commanded = safe.q
            continue
        if k % period == 0:
            push = push if rng.random() < 0.7 else rng.uniform(-0.25, 0.25, limits.joints)
            commanded = path.q if clamped else commanded
            path.push(now, now + period * safety.dt, safety.above_table(np.clip(commanded + push, low, high)))
            clamped = False
        target, _ = path.step(now)
        reach = np.array(limits.dq_max) * safety.dt
        assert (np.abs(target - safety.q_last) <= reach).all()  # a quarter of the jump limit
        safe = send(safety, target, age=1.0 if rng.random() < faults else 0.0)
        assert safe.verdict != Verdict.STOP
        if safe.verdict != Verdict.PASS:
            path.q, path.dq = safe.q, safety.dq_last
            clamped = True


def test_stream_within_limits_passes_unchanged():
    safety = started()
    for t in np.arange(1, 60) * safety.dt:
        target = HOME + 0.05 * (1 - np.cos(4 * t)) * np.array([1, 1, -1, 1, -1, 1, 1])
        safe = send(safety, target, 0.3)
        assert (safe.verdict, safe.reasons, safe.gripper) == (Verdict.PASS, (), 0.3)
        np.testing.assert_allclose(safe.q, target, atol=1e-12)


def test_a_line_of_one_period_is_checked():
    safety = started(limits=SLOW)
    turn = 0.49 * safety.dt * np.eye(7)
    assert safety.beyond(HOME) < 0 and safety.problem_between(HOME, HOME + turn[0], safety.dt) is None
    assert safety.problem_between(HOME, HOME + turn[3], safety.dt) == "point speed: TCP"
    assert safety.problem_between(HOME, HOME + 2 * turn[0], safety.dt) == "speed: joint 1"


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("joint", range(7))
def test_steps_above_the_limit_are_jumps(sign, joint):
    step = sign * XARM7_LIMITS.step_max * np.eye(7)[joint]
    safety = started()
    assert send(safety, HOME + 0.999 * step).verdict == Verdict.CLAMP
    safety.reset(HOME)
    assert send(safety, HOME + 1.001 * step).reasons == (f"jump of joint {joint + 1} by 0.1 rad",)


@settings(max_examples=30, deadline=None)
@given(
    SEEDS, st.sampled_from(MOODS), st.integers(0, 40), st.lists(st.floats(-1e9, 1e9), min_size=7, max_size=7)
)
def test_arm_never_follows_any_part_of_a_jump(seed, mood, count, offset):
    """In any state, a jump stops at once, the arm only brakes, and no later target moves it."""
    assume(max(map(abs, offset)) > XARM7_LIMITS.step_max)
    safety = started()
    attacker = Attacker(safety, np.random.default_rng(seed))
    attacker.mood = mood
    for _ in range(count):
        safety(*attacker.inputs())
    loss = np.array(XARM7_LIMITS.ddq_max) * safety.dt
    jumped = False
    for _ in range(20):
        target = safety.q_last if jumped else safety.q_last + offset
        assume(jumped or np.abs(target - safety.q_last).max() > XARM7_LIMITS.step_max)  # rounded
        before = safety.dq_last
        safe, jumped = send(safety, target), True
        assert safe.verdict == Verdict.STOP and safe.reasons[0].startswith("jump of joint")
        expected = np.sign(before) * np.maximum(np.abs(before) - loss, 0)
        np.testing.assert_allclose(safety.dq_last, expected, atol=1e-4)
    assert not safety.dq_last.any()


@pytest.mark.parametrize("axis, sign, word", [(0, -1, "box"), (1, 1, "box"), (2, -1, "table")])
def test_motion_out_of_the_workspace_ends_at_its_border(axis, sign, word):
    # separated, so that neither limit hides the other
    table = 0.10 if word == "table" else XARM7_LIMITS.table_z
    tight = XARM7_LIMITS.replace(box=((0.37, 0.50), (-0.15, 0.15), (-0.13, 0.50)), table_z=table)
    safety, seen = started(limits=tight, clamps_max=10_000), set()
    for _ in range(120):
        slope = POINTS.along(safety.q_last + np.eye(7) * 1e-4)[:, 0, axis] - POINTS.at(safety.q_last)[0, axis]
        seen.update(send(safety, safety.q_last + sign * 0.05 * slope / np.linalg.norm(slope)).reasons)
    assert any(reason.startswith(word) for reason in seen)
    moved = POINTS.at(safety.q_last)[0, axis] - POINTS.at(HOME)[0, axis]
    assert np.sign(moved) == sign  # it moved there, and not beyond
    assert Judge(tight, POINTS, safety.q_last).faults(safety.q_last, None) == []


@pytest.mark.parametrize("requested, sent", [(2.0, 1.0), (-0.5, 0.0), (None, None)])
def test_the_gripper_is_clipped(requested, sent):
    safe = send(started(), HOME, requested)
    assert (safe.gripper, safe.verdict == Verdict.CLAMP) == (sent, requested is not None)


def moving() -> SafetyFilter:
    safety = started()
    for i in range(1, 8):
        send(safety, HOME + 5e-4 * i * i * np.ones(7))
    assert safety.dq_last.min() > 0.3
    return safety


@pytest.mark.parametrize("age", [0.051, np.inf, np.nan, -0.1])
def test_stale_state_brakes_and_a_fresh_one_resumes(age):
    safety = moving()
    verdicts = {send(safety, HOME, age=age).verdict for _ in range(20)}
    assert verdicts == {Verdict.HOLD} and not safety.dq_last.any()
    assert send(safety, safety.q_last).verdict == Verdict.PASS


def test_hold_brakes_and_a_stop_stays_a_stop():
    safety = moving()
    held = [safety.hold("policy is late") for _ in range(20)]
    assert {(s.verdict, s.reasons, s.gripper) for s in held} == {(Verdict.HOLD, ("policy is late",), None)}
    assert not safety.dq_last.any()
    send(safety, None)
    assert safety.hold("policy is late").verdict == Verdict.STOP


@settings(max_examples=40, deadline=None)
@given(SEEDS, MOVES)
def test_limits_hold_from_rest_after_a_gap(seed, moods):
    """The arm rests at the last command: speed restarts from zero, and every limit applies from there."""
    safety = started(clamps_max=10_000)
    attacker = Attacker(safety, np.random.default_rng(seed))
    for mood, count in moods:
        safety.rest()
        attack(safety, attacker, Judge(safety.limits, POINTS, safety.q_last), mood, count)  # at rest
    before = safety.q_last
    safety.rest()
    np.testing.assert_array_equal(safety.hold("nothing").q, before)


@pytest.mark.parametrize(
    "change",
    [{"target": x} for x in (*WRONG["shape"], *WRONG["type"], np.full(7, np.inf))]
    + [{"measured": x} for x in (np.full(7, np.nan), HOME - 1e300, HOME + 0.1)]
    + [{"gripper": np.nan}, {"gripper": "open"}],
)
def test_invalid_input_stops_until_reset(change):
    safety = moving()
    safe = send(safety, **{"target": safety.q_last, "gripper": 0.5, "measured": safety.q_last, **change})
    assert safe.verdict == Verdict.STOP and safe.gripper is None and len(safe.reasons) == 1
    for _ in range(20):
        later = send(safety, safety.q_last)
        assert (later.verdict, later.reasons) == (Verdict.STOP, safe.reasons)
    assert not safety.dq_last.any()
    safety.reset(safety.q_last)
    assert send(safety, safety.q_last).verdict == Verdict.PASS


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("joint", range(7))
def test_arm_that_lags_beyond_either_limit_is_stopped(sign, joint):
    """A radian of the shoulder moves the hand by half a metre, one of the last joint hardly at all."""
    step = sign * np.eye(7)[joint]
    reach = np.linalg.norm(POINTS.at(HOME + 1e-4 * step) - POINTS.at(HOME), axis=1).max() / 1e-4  # m/rad
    limit = min(XARM7_LIMITS.lag_max, XARM7_LIMITS.point_lag_max / reach)
    assert (limit < XARM7_LIMITS.lag_max) == (joint in (0, 1, 2, 3))
    assert send(started(), HOME, measured=HOME + 0.98 * limit * step).verdict == Verdict.PASS
    safe = send(started(), HOME, measured=HOME + 1.02 * limit * step)
    assert safe.verdict == Verdict.STOP and " lags 0." in safe.reasons[0]
    assert ("m behind its command" in safe.reasons[0]) == (limit < XARM7_LIMITS.lag_max)


@pytest.mark.parametrize(
    ("lag", "speed", "stops"),
    [(0.065, 0.0, True), (-0.065, 0.0, True), (0.055, 0.0, False), (0.1, 0.05, False)],
)
def test_stationary_joint_behind_its_command_is_stopped_after_a_second(lag, speed, stops):
    safety, joint = started(), np.eye(7)[6]
    targets = [HOME + i * speed / 100 * joint for i in range(150)]
    sent = [send(safety, target, measured=safety.q_last - lag * joint) for target in targets]
    assert [safe.verdict for safe in sent[:100]] == [Verdict.PASS] * 100
    assert sent[-1].verdict == (Verdict.STOP if stops else Verdict.PASS)
    assert not stops or sent[-1].reasons[0].startswith("joint 7 lags 0.07 rad")


def pushed(safety):
    """Send a target that is clamped because it is too fast for the arm."""
    return send(safety, safety.q_last + 0.09 * np.eye(7)[6])


def rested(safety):
    """Send a target that passes, after braking to rest."""
    while safety.dq_last.any():
        safety.hold("to rest")
    return send(safety, safety.q_last)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), max_size=120), st.integers(2, 20), st.sampled_from([0.05, 0.25, 1.0, 3.0]))
@example([True] * 6, 5, 1.0)
def test_the_count_of_clamped_targets_leaks(clamped, limit, leak):
    safety, count = started(clamps_max=limit, clamps_leak=leak), 0.0
    for clamp in clamped:
        count = count + 1 if clamp else max(count - leak, 0.0)
        safe = (pushed if clamp else rested)(safety)
        if count >= limit:
            assert safe.verdict == Verdict.STOP and safe.reasons[0].startswith("clamped too often")
            safety.reset(safety.q_last)
            assert pushed(safety).verdict == Verdict.CLAMP  # the count restarts
            return
        assert safe.verdict == (Verdict.CLAMP if clamp else Verdict.PASS)


def streamed(safety, limits, act, periods, every=14):
    """Yield the filtered stream of `act(commanded joints)`, generated as in the loop."""
    stream = CommandStream(limits, safety, LoopConfig(live=True, policy_hz=1 / (every * safety.dt)))
    stream.start(HOME)
    for k in range(periods):
        now, state = k * safety.dt, ArmState(safety.q_last, 1.0, k * safety.dt, 1, 0)
        if k % every == 0:
            action = np.append(act(stream.commanded), 0.0)
            stream.take(now, action, state, {"images": {}, "proprio": state.q}, now, np.zeros(0))
        yield stream.next(now, state)[0]


@pytest.mark.parametrize("seed", range(3))
def test_arm_touching_the_table_is_not_stuck(seed):
    """Random targets just above the table, some with a turned hand. Joints accelerate unequally, so a straight rise
    starts with a fingertip slightly lower. The arm once stood still for up to 4 s below its target."""
    limits = SLOW.replace(table_clearance=0.0, box=((-1.0, 1.0),) * 3)
    safety, rng, idle = started(limits=limits, clamps_max=10_000), np.random.default_rng(seed), 0

    def act(commanded):
        low = HOME + rng.uniform(-0.08, 0.08, 7)
        low[1] += rng.uniform(0.6, 0.75)
        return np.clip(low - commanded, -0.12, 0.12)

    for safe in streamed(safety, limits, act, 60 * 14):
        idle = 0 if safety.dq_last.any() else idle + 1
        assert idle < 20, safe.reasons  # 0.2 s; targets come every 0.14 s


@pytest.mark.parametrize("limits", [XARM7_LIMITS, SLOW])
def test_policy_sliding_along_the_table_is_not_stopped(limits):
    """The policy pushes the hand 2 cm down with every action for 6 s, swinging to and fro."""
    hand, swings = POINTS.in_box, itertools.cycle([-0.03] * 10 + [0.03] * 10)

    def act(commanded):
        slopes = (POINTS.along(commanded + 1e-5 * np.eye(7)) - POINTS.at(commanded))[:, hand] / 1e-5
        down = np.linalg.lstsq(slopes.reshape(7, -1).T, np.tile([0, 0, -0.02], hand.sum()), rcond=1e-3)[0]
        return down + next(swings) * np.eye(7)[0]

    sent = list(streamed(started(limits=limits), limits, act, 600))
    lowest, verdicts = min(POINTS.at(safe.q)[:, 2].min() for safe in sent), [safe.verdict for safe in sent]
    assert lowest < limits.table_z + limits.table_clearance + 3e-3  # it got there
    assert Verdict.STOP not in verdicts and verdicts.count(Verdict.CLAMP) < 10


def test_nothing_moves_before_a_reset():
    safe = SafetyFilter(XARM7_LIMITS, POINTS)(HOME, 0.5, HOME, 0.0)
    assert safe.verdict == Verdict.STOP and safe.reasons == ("not started",)


def test_an_arm_that_rests_at_a_wall_can_start_again():
    """Real joints rest a little off, perhaps beyond the wall: then the filter starts at its last output."""
    safety = started(clamps_max=10_000)
    for _ in range(500):
        safe = send(safety, safety.q_last + 0.01 * np.eye(7)[0])
    assert any("box" in reason for reason in safe.reasons)
    for off in (1e-4, -1e-4):
        safety.reset(safe.q + off)
        np.testing.assert_array_equal(safety.q_last, safe.q)
    fails("outside its limits", safety.reset, safe.q + 0.01 * np.eye(7)[0])


@pytest.mark.parametrize(
    "q, words",
    [
        (np.full(7, np.nan), "7 finite"),
        (np.where(np.arange(7) == 1, 2.09, HOME), "joint 2: expected .* got 2.090"),
        (np.where(np.arange(7) == 1, 1.2, HOME), "outside its limits"),
    ],
)
def test_an_arm_outside_its_limits_is_not_started(q, words):
    fails(words, started, q)
    walls = ((-0.02, 0.55), (-0.35, 0.35), (-0.2, 0.72))
    fails(r"outside its limits \(box: elbow\)", started, limits=XARM7_LIMITS.replace(arm_box=walls))
