"""When the expert takes over, step by step."""

import pytest

from s2robot.common.errors import UserError
from s2robot.dagger.takeover import Seen, TakeoverSettings, Watch


def reasons(settings: TakeoverSettings, *left: float) -> list[str]:
    watch = Watch(settings)
    return [watch.reason(Seen(metres, missed=False)) for metres in left]


def test_it_waits_for_progress_and_no_longer():
    settings = TakeoverSettings(patience=2, progress=0.01)
    # 0.275 is too little, 0.269 is more than 1 cm below the best, 0.28; then nothing
    near = (0.30, 0.28, 0.275, 0.269, 0.268, 0.30)
    assert reasons(settings, *near) == ["", "", "", "", "", "stalled"]
    lifted = (0.01, -0.01, -0.03)
    assert reasons(settings, *lifted, lifted[-1]) == ["", "", "", ""]
    assert reasons(settings, *lifted, lifted[1], lifted[0])[-1] == "stalled"  # it sinks again


def test_what_has_plainly_failed_is_not_waited_for():
    assert Watch(TakeoverSettings()).reason(Seen(0.3, missed=True)) == "missed"


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
        ("progress", float("nan"), "0 or more"),
        ("disagreement", float("nan"), "more than 0, or null"),
    ],
)
def test_numbers_out_of_range_are_refused(key, value, text):
    with pytest.raises(UserError, match=f"recording.takeover.{key}: found {value}, expected {text}"):
        TakeoverSettings(**{key: value})
