"""Run the table of encoders: every row of plan.py on its data sets and seeds, each against SASRec, user by user.

    RECSYS_MIRROR=... python benchmarks/quality/encoders.py
    python benchmarks/quality/encoders.py --data ml-100k --only sasrec gru4rec --seeds 0 1 --budget-minutes 60

RecBole's rows are passed over where it is not installed. ReaRec is also compared with the encoder it wraps.
"""

from __future__ import annotations

from driver import main
from plan import ENCODERS

if __name__ == "__main__":
    main(ENCODERS, __doc__)
