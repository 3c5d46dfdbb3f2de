#!/usr/bin/env bash
# Polars 2.1.0: dates that nanoseconds cannot hold are parsed into other centuries, strict or not, and only by parsing.
#
# str.to_datetime(..., time_unit="ns") reads "1600-01-01" as 2184-07-20 and "2300-01-01" as 1715-06-13: the count of
# nanoseconds since 1970 runs over 64 bits, and neither strict=True (an error is expected) nor strict=False (null) tells.
# The same dates cast from Date to Datetime("ns") are an error, and with time_unit="us" they are right. Placeholders such
# as 1600-01-01 or 9999-12-31 in a log therefore become plausible times among the real ones.
#
# Seen with Python 3.11 on Linux x86-64:
#   parsed, strict:      2184-07-20 23:34:33.709551, 1715-06-13 00:25:26.290448
#   parsed, not strict:  the same
#   parsed as us:        1600-01-01 00:00:00, 2300-01-01 00:00:00
#   cast from Date:      InvalidOperationError
# What helps: parse to microseconds first, and go to nanoseconds only inside 1677-09-22 to 2262-04-11.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check "polars==2.1.0"
cd "$work"
"$work/env/bin/python" - <<'PY'
import datetime

import polars as pl

dates = pl.Series(["1600-01-01", "2300-01-01"])
for strict in (True, False):
    found = dates.str.to_datetime("%Y-%m-%d", time_unit="ns", strict=strict).to_list()
    print(f"parsed, strict={strict}:", *found)
    assert [one and one.year for one in found] == [2184, 1715], "changed: dates beyond nanoseconds"
right = dates.str.to_datetime("%Y-%m-%d", time_unit="us").to_list()
print("parsed as us:", *right)
assert right == [datetime.datetime(1600, 1, 1), datetime.datetime(2300, 1, 1)]
try:
    dates.str.to_date().cast(pl.Datetime("ns"))
except pl.exceptions.InvalidOperationError as error:
    print("cast from Date:", type(error).__name__)
else:
    raise AssertionError("changed: the cast wraps as well")
print("as described")
PY
