"""Run the table of augmentations: every auxiliary of plan.py on the same backbone, each against it, user by user.

    RECSYS_MIRROR=... python benchmarks/quality/augment.py
    python benchmarks/quality/augment.py --data ml-100k --only backbone cl4srec --seeds 0 1 --budget-minutes 60

SRA-CL is also compared with itself under shuffled semantics; LACLRec with CL4SRec, and with itself less its augmenter
and less its triplet.
"""

from __future__ import annotations

from driver import main
from plan import AUGMENT

if __name__ == "__main__":
    main(AUGMENT, __doc__)
