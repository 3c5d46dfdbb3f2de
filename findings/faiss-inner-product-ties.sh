#!/usr/bin/env bash
# faiss-cpu 1.15.1: an exact inner-product index lists equal scores backwards, so a short answer does not begin a long one.
#
# IndexFlatIP keeps the k lowest ids among equal scores and lists them from the highest id down: of fifty equal vectors
# k=5 answers 4 3 2 1 0 and k=10 answers 9 8 ... 0: the five of the short answer are the last five of the long one. So
# paging, "ask for more and drop what is not wanted" and comparing two cut-offs all change what comes first.
# IndexFlatL2 on the same vectors lists them from the lowest id up. Items with equal vectors are ordinary: equal texts,
# untrained rows, copies of an article.
#
# Seen with Python 3.11 on Linux x86-64, for one query and for a hundred (faiss takes another path from twenty on):
#   IP  k=5: 4 3 2 1 0     k=10: 9 8 7 6 5 4 3 2 1 0
#   L2  k=5: 0 1 2 3 4     k=10: 0 1 2 3 4 5 6 7 8 9
# What helps: ask for one more than wanted and sort by (-score, id) whatever is tied with the last, or scan.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check "faiss-cpu==1.15.1" "numpy==2.4.6"
cd "$work"
"$work/env/bin/python" - <<'PY'
import faiss
import numpy as np

vectors = np.ones((50, 8), np.float32)
for queries in (1, 100):
    for kind, backwards in ((faiss.IndexFlatIP, True), (faiss.IndexFlatL2, False)):
        index = kind(8)
        index.add(vectors)
        for k in (5, 10):
            ids = index.search(np.ones((queries, 8), np.float32), k)[1][0].tolist()
            print(kind.__name__, f"queries={queries} k={k}:", *ids)
            expected = list(range(k))
            assert ids == (expected[::-1] if backwards else expected), "changed: the order of equal scores"
print("as described")
PY
