"""What is said about where training stands."""

import pytest

from recsys.runs.state import State


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.1, "less than 1 s left"), (30.0, "at most 60 s left"), (300.0, "at most 10 min left")]
)
def test_the_time_that_is_left_is_never_nothing(seconds: float, said: str) -> None:
    record = {"epoch": 1, "loss": 1.0, "targets_per_second": 5.0, "seconds": seconds, "validation_seconds": 0.0}
    state = State(epoch=1, history=[record])
    assert state.line(3).endswith(f"  {said}")
    assert "left" not in state.line(1)


def test_a_state_that_is_not_whole_names_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="the state of training lacks stage, stage_epoch"):
        State.of({})
