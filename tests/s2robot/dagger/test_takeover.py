"""When the expert takes over, step by step."""

import pytest

from s2robot.common.errors import UserError
from s2robot.dagger.takeover import Seen, TakeoverSettings, Watch

FAR = Seen(distance=0.3, raised=0.0, opening=1.0, touching=False, closed=False)


def reasons(settings: TakeoverSettings, *steps: dict) -> list[str]:
    watch = Watch(settings)
    return [watch.reason(Seen(**{**vars(FAR), **step})) for step in steps]


def test_it_waits_for_progress_and_no_longer():
    settings = TakeoverSettings(patience=2, progress=0.01)
    near = [{"distance": d} for d in (0.30, 0.28, 0.275, 0.269, 0.268, 0.30)]
    # 0.275 is too little, 0.269 is more than 1 cm below the best, 0.28; then nothing
    assert reasons(settings, *near) == ["", "", "", "", "", "stalled"]
    lifted = [
        {"distance": 0.01, "raised": r, "touching": True, "closed": True, "opening": 0.4}
        for r in (0, 0.02, 0.04)
    ]
    assert reasons(settings, *lifted, lifted[-1]) == ["", "", "", ""]
    assert reasons(settings, *lifted, lifted[1], lifted[0])[-1] == "stalled"  # it sinks again
    pushed_down = [{"raised": r} for r in (0.0, -0.1, -0.2)]  # a cube that falls off the table is no progress
    assert reasons(settings, *pushed_down) == ["", "", "stalled"]


def test_a_gripper_that_closed_on_nothing_has_missed():
    shut = {"closed": True, "opening": 0.1}
    for change, reason in (
        ({}, "missed"),
        ({"opening": 0.2}, ""),
        ({"touching": True}, ""),
        ({"closed": False}, ""),
    ):
        assert reasons(TakeoverSettings(), shut | change) == [reason]


def test_members_that_disagree():
    assert not Watch(TakeoverSettings()).unsure(9.0)
    watch = Watch(TakeoverSettings(disagreement=0.1))
    assert watch.unsure(0.11) and not watch.unsure(0.1)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("patience", 0, "1 or more"),
        ("progress", -0.1, "0 or more"),
        ("disagreement", 0.0, "more than 0, or null"),
    ],
)
def test_numbers_out_of_range_are_refused(key, value, text):
    with pytest.raises(UserError, match=f"recording.takeover.{key}: found {value}, expected {text}"):
        TakeoverSettings(**{key: value})
