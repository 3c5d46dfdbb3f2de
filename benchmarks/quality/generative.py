"""Run the table of generative recommenders: every row of plan.py over semantic ids, each against SASRec, user by user.

    RECSYS_MIRROR=... python benchmarks/quality/generative.py
    python benchmarks/quality/generative.py --data ml-100k --only sasrec rpg tiger --seeds 0 --budget-minutes 60

Rows whose codes read the item vectors of a SASRec read those of its own row's first seed, which is run before them.
"""

from __future__ import annotations

from driver import main
from plan import GENERATE

if __name__ == "__main__":
    main(GENERATE, __doc__)
