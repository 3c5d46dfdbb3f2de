"""When something happened, as vectors: a calendar date by Mercer encodings, a waiting time by a table of hours.

Times are int64 milliseconds since 1970-01-01 in UTC (negative ones lie before it), waiting times whole hours. Follows
section 3 of UniRec (Liu, Wang & Feng, CIKM 2024, arXiv 2406.18470, as its code has it) and the Mercer time encoding of
Xu et al. 2019 (arXiv 1911.12864). What we do differently: the small vocabularies of the calendar features are encoded
once per call and gathered, years count from the first of a range that is decided at construction (a phase, no more),
and waiting times are hours in training and in ranking.

Legend: V distinct values of the seven calendar features together, K frequencies, J harmonics of each, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.nn.dropout import Dropout

HOUR = 3_600_000  # milliseconds
DAY = 24 * HOUR
_EPOCH = 719_162  # days from 0001-01-01 to 1970-01-01


def calendar(times: Tensor) -> Tensor:
    """(..., 7) int64 of times (...): year, month, day, weekday (Monday = 0), day of year, ISO week, hour; in UTC.

    Exact for every date of the Gregorian calendar, continued to before its introduction.
    """
    days = times.div(DAY, rounding_mode="floor")
    weekday = (days + 3) % 7  # 1970-01-01 was a Thursday
    year, day_of_year = _year(days)
    _, thursday = _year(days - weekday + 3)  # the year that an ISO week belongs to is that of its Thursday
    since_march, _ = _from_march(days)
    month_of_march = (5 * since_march + 2).div(153, rounding_mode="floor")  # March = 0
    day = since_march - (153 * month_of_march + 2).div(5, rounding_mode="floor") + 1
    month = (month_of_march + 2) % 12 + 1
    hour = (times - days * DAY).div(HOUR, rounding_mode="floor")
    week = thursday.div(7, rounding_mode="floor") + 1
    return torch.stack([year, month, day, weekday, day_of_year + 1, week, hour], dim=-1)


def hours_between(earlier: Tensor, later: Tensor, longest: int = 8760) -> Tensor:
    """Whole hours from ``earlier`` to ``later`` (both in milliseconds), clipped to 0..``longest``."""
    return (later - earlier).div(HOUR, rounding_mode="floor").clamp(0, longest)


def _from_march(days: Tensor) -> tuple[Tensor, Tensor]:
    """Days since the last 1 March and the year of it: leap days fall at the end of such years."""
    shifted = days + _EPOCH + 306  # days since 0000-03-01
    era = shifted.div(146_097, rounding_mode="floor")  # 400 years
    inside = shifted - era * 146_097
    year = (inside - inside // 1460 + inside // 36_524 - inside // 146_096) // 365
    return inside - (365 * year + year // 4 - year // 100), year + 400 * era


def _year(days: Tensor) -> tuple[Tensor, Tensor]:
    """The year and the days since its 1 January."""
    since_march, year = _from_march(days)
    year = year + (since_march >= 306)
    past = year - 1
    leaps = past.div(4, rounding_mode="floor") - past.div(100, rounding_mode="floor")
    first = 365 * past + leaps + past.div(400, rounding_mode="floor") - _EPOCH
    return year, days - first


class CalendarEncoder(nn.Module):
    """Vectors of dates: each feature x is encoded as

    enc_k(x) = sum_j w_kj sin(f_kj x) + w_k(J+j) cos(f_kj x) + beta_k,  f_kj = j / 10^p_k,

    with trainable p, w and beta per feature; the encodings of all features are joined and projected to D.

    Args:
        dim: width D.
        num_frequencies: K, p starts evenly spaced from 0 to 8.
        expansion: J, harmonics of each frequency.
        dropout: on the projected vectors.
        first_year: x = 0 of the year feature; earlier years are read as this one.
        last_year: later years are read as this one.

    Raises:
        ValueError: a size below 1, or years in the wrong order.
    """

    values: Tensor  # (V,) float32: every value of every feature
    feature: Tensor  # (V,) int64: the feature that it belongs to
    offset: Tensor  # (7,) int64: row of x = 0 of each feature

    def __init__(
        self,
        dim: int = 64,
        num_frequencies: int = 16,
        expansion: int = 3,
        dropout: float = 0.0,
        first_year: int = 1970,
        last_year: int = 2069,
    ) -> None:
        super().__init__()
        if min(dim, num_frequencies, expansion) < 1:
            raise ValueError(f"sizes must be at least 1, found {dim=}, {num_frequencies=}, {expansion=}")
        if first_year > last_year:
            raise ValueError(f"first_year must not be after last_year, found {first_year} and {last_year}")
        self.dim, self.num_frequencies, self.expansion, self.dropout = dim, num_frequencies, expansion, dropout
        self.first_year, self.last_year = first_year, last_year
        lowest, highest = [0, 1, 1, 0, 1, 1, 0], [last_year - first_year, 12, 31, 6, 366, 53, 23]
        sizes = [high - low + 1 for low, high in zip(lowest, highest, strict=True)]
        starts = [sum(sizes[:index]) for index in range(7)]
        self._sizes = sizes
        ranges = [torch.arange(low, high + 1) for low, high in zip(lowest, highest, strict=True)]
        self.register_buffer("values", torch.cat(ranges).float(), persistent=False)
        self.register_buffer("feature", torch.arange(7).repeat_interleave(torch.tensor(sizes)), persistent=False)
        self.register_buffer("offset", torch.tensor(starts) - torch.tensor(lowest), persistent=False)
        self.powers = nn.Parameter(torch.empty(7, num_frequencies))
        self.mixing = nn.Parameter(torch.empty(7, num_frequencies, 2 * expansion))
        self.shift = nn.Parameter(torch.empty(7, num_frequencies))
        self.project = nn.Linear(7 * num_frequencies, dim)
        self.drop = Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Powers evenly spaced, w Glorot uniform, beta 0; the projection N(0, 0.01^2) without bias."""
        with torch.no_grad():
            self.powers.copy_(torch.linspace(0.0, 8.0, self.num_frequencies).expand(7, -1))
        bound = (6 / (self.num_frequencies + 2 * self.expansion)) ** 0.5
        nn.init.uniform_(self.mixing, -bound, bound)
        nn.init.zeros_(self.shift)
        nn.init.normal_(self.project.weight, std=0.01)
        nn.init.zeros_(self.project.bias)

    def mercer(self, values: Tensor, feature: Tensor) -> Tensor:
        """(..., K) encodings of the values x (...) of the features (...) 0..6."""
        harmonics = torch.arange(1, self.expansion + 1, device=values.device)
        frequencies = harmonics / 10 ** self.powers[feature].unsqueeze(-1)  # (..., K, J)
        angles = frequencies * values[..., None, None]
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return (waves * self.mixing[feature]).sum(-1) + self.shift[feature]

    def rows(self, times: Tensor) -> Tensor:
        """(..., 7) int64: rows of the calendar features of times (...) among the V values."""
        features = calendar(times)
        year = features[..., :1].clamp(self.first_year, self.last_year) - self.first_year
        return torch.cat([year, features[..., 1:]], dim=-1) + self.offset

    def forward(self, times: Tensor) -> Tensor:
        """(..., D) of times (...), int64 milliseconds."""
        encoded = self.mercer(self.values, self.feature)  # (V, K)
        kernels = self.project.weight.T.split(self.num_frequencies)  # 7 x (K, D)
        # Each value's share of the projection, so that a date is the sum of seven rows.
        shares = torch.cat([part @ kernel for part, kernel in zip(encoded.split(self._sizes), kernels, strict=True)])
        summed = F.embedding_bag(self.rows(times).view(-1, 7), shares, mode="sum") + self.project.bias
        return self.drop(summed.view(*times.shape, self.dim))


class IntervalEncoder(nn.Module):
    """A vector per whole hour of waiting, from 0 to ``longest`` hours (a year by default).

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, dim: int = 64, longest: int = 8760) -> None:
        super().__init__()
        if dim < 1 or longest < 1:
            raise ValueError(f"sizes must be at least 1, found {dim=}, {longest=}")
        self.dim, self.longest = dim, longest
        self.table = nn.Embedding(longest + 1, dim)

    def forward(self, earlier: Tensor, later: Tensor) -> Tensor:
        """(..., D) of the hours from ``earlier`` (...) to ``later`` (...), both int64 milliseconds."""
        return self.table(hours_between(earlier, later, self.longest))
