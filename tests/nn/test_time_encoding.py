"""Calendar arithmetic against Python's datetime, encodings against direct loops (unirec.md, checks 9 and 10)."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.nn.time_encoding import DAY, HOUR, CalendarEncoder, IntervalEncoder, calendar, hours_between

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST, LAST = (int((datetime(y, m, d) - datetime(1970, 1, 1)).total_seconds()) for y, m, d in ((2, 1, 1), (9998, 1, 1)))


def expected(milliseconds: int) -> list[int]:
    moment = EPOCH + timedelta(milliseconds=milliseconds)
    day = moment.timetuple()
    return [moment.year, moment.month, moment.day, moment.weekday(), day.tm_yday, moment.isocalendar()[1], moment.hour]


def millis(*date: int) -> int:
    return round((datetime(*date, tzinfo=UTC) - EPOCH) / timedelta(milliseconds=1))  # type: ignore[arg-type,misc]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(FIRST * 1000, LAST * 1000), min_size=1, max_size=50))
def test_calendar_equals_datetime_at_any_time(times: list[int]) -> None:
    assert calendar(torch.tensor(times)).tolist() == [expected(one) for one in times]


def test_calendar_equals_datetime_on_every_day_of_two_centuries() -> None:
    days = torch.arange(-36_600, 36_600)
    moments = days * DAY + 23 * HOUR + 59
    assert calendar(moments).tolist() == [expected(one) for one in moments.tolist()]


@pytest.mark.parametrize(
    ("date", "found"),
    [
        ((1969, 12, 31, 23, 59, 59), [1969, 12, 31, 2, 365, 1, 23]),
        ((2000, 2, 29, 0), [2000, 2, 29, 1, 60, 9, 0]),
        ((1900, 3, 1), [1900, 3, 1, 3, 60, 9, 0]),
        ((2020, 12, 31, 12), [2020, 12, 31, 3, 366, 53, 12]),
        ((2021, 1, 3), [2021, 1, 3, 6, 3, 53, 0]),
        ((2018, 12, 31), [2018, 12, 31, 0, 365, 1, 0]),
    ],
)
def test_leap_days_and_weeks_of_another_year(date: tuple[int, ...], found: list[int]) -> None:
    assert calendar(torch.tensor([[millis(*date)]])).tolist() == [[found]]


def direct(encoder: CalendarEncoder, milliseconds: int) -> Tensor:
    """The equations of unirec.md section 3.1, a loop over features, frequencies and harmonics."""
    features = [float(value) for value in expected(milliseconds)]
    features[0] = min(max(features[0], encoder.first_year), encoder.last_year) - encoder.first_year
    encoded = []
    for feature, x in enumerate(features):
        for k in range(encoder.num_frequencies):
            value = encoder.shift[feature, k].item()
            for j in range(1, encoder.expansion + 1):
                angle = j / 10 ** encoder.powers[feature, k].item() * x
                value += encoder.mixing[feature, k, j - 1].item() * math.sin(angle)
                value += encoder.mixing[feature, k, encoder.expansion + j - 1].item() * math.cos(angle)
            encoded.append(value)
    return encoder.project.weight @ torch.tensor(encoded, dtype=torch.float64) + encoder.project.bias


def test_check_09_mercer_equals_a_direct_loop_and_the_gather_equals_both() -> None:
    torch.manual_seed(0)
    encoder = CalendarEncoder(12, num_frequencies=4, expansion=3).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    times = [millis(1997, 9, 20, 3), millis(2004, 2, 29, 23, 59), millis(2030, 12, 31), 0, -5, millis(2150, 7, 1)]
    found = encoder(torch.tensor(times).view(2, 3)).view(6, 12)
    for row, one in enumerate(times):
        torch.testing.assert_close(found[row], direct(encoder, one), atol=1e-6, rtol=1e-6)
    rows = encoder.rows(torch.tensor(times))
    encodings = encoder.mercer(encoder.values[rows], torch.arange(7).expand(6, 7))  # every feature of every time
    ungathered = encoder.project(encodings.flatten(1))
    torch.testing.assert_close(found, ungathered, atol=1e-6, rtol=1e-6)


def test_years_outside_the_range_are_read_as_its_ends() -> None:
    encoder = CalendarEncoder(8, first_year=1990, last_year=2000).eval()
    low, high = millis(1980, 5, 5), millis(2010, 5, 5)
    rows = encoder.rows(torch.tensor([low, high]))
    assert rows[:, 0].tolist() == [0, 10]
    assert encoder.rows(torch.tensor([millis(1990, 1, 1)]))[0, 0] == 0


def test_no_times_give_no_vectors_and_gradients_reach_everything() -> None:
    encoder = CalendarEncoder(8)
    assert encoder(torch.zeros(0, dtype=torch.long)).shape == (0, 8)
    encoder(torch.tensor([millis(1998, 4, 5, 6), millis(1999, 5, 6, 7)])).square().sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in encoder.parameters())


def test_check_10_intervals_are_hours_clipped_to_a_year() -> None:
    earlier = torch.tensor([0, 0, 0, 0, 5 * HOUR, -HOUR])
    later = torch.tensor([0, HOUR - 1, HOUR, 8761 * HOUR, 0, HOUR])
    assert hours_between(earlier, later).tolist() == [0, 0, 1, 8760, 0, 2]
    encoder = IntervalEncoder(4)
    assert encoder.table.weight.shape == (8761, 4)
    assert torch.equal(encoder(earlier, later), encoder.table.weight[[0, 0, 1, 8760, 0, 2]])


def test_u6_a_wait_is_of_whole_hours_elapsed() -> None:
    """Not the difference of clock hours, as in the authors' code, which is an hour more for about half of all gaps."""
    generator = torch.Generator().manual_seed(0)
    earlier = torch.randint(0, 10**12, (4000,), generator=generator)
    later = earlier + torch.randint(0, 5000 * HOUR, (4000,), generator=generator)
    elapsed = hours_between(earlier, later)
    assert torch.equal(elapsed, (later - earlier) // HOUR)
    more = later // HOUR - earlier // HOUR - elapsed
    assert set(more.tolist()) == {0, 1}
    assert more.double().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("wrong", [{"dim": 0}, {"expansion": 0}, {"first_year": 2001, "last_year": 2000}])
def test_wrong_settings_are_errors(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        CalendarEncoder(**wrong)
    with pytest.raises(ValueError, match="at least 1"):
        IntervalEncoder(4, longest=0)
