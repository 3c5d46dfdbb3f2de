"""Where classes that runs and bundles name were defined before version 0.2, so that these still load."""

from __future__ import annotations

_MODULES = {
    "recsys.recommender": "recsys.recommenders.composed",
    "recsys.items": "recsys.items.ids",
    "recsys.augment.editor": "recsys.auxiliaries.editor",
    "recsys.augment.intents": "recsys.auxiliaries.intents",
    "recsys.augment.semantic": "recsys.auxiliaries.semantic",
    "recsys.augment.similar": "recsys.statistics.similarity",
    "recsys.augment.triplet": "recsys.auxiliaries.triplet",
    "recsys.baselines.ease": "recsys.recommenders.ease",
    "recsys.baselines.itemknn": "recsys.recommenders.itemknn",
    "recsys.baselines.markov": "recsys.recommenders.markov",
    "recsys.baselines.popularity": "recsys.recommenders.popularity",
    "recsys.baselines.recbole": "recsys.recommenders.recbole",
    "recsys.baselines.relmf": "recsys.recommenders.relmf",
    "recsys.llm.backbone": "recsys.nn.backbone",
    "recsys.llm.distil": "recsys.auxiliaries.distillation",
    "recsys.llm.pretraining": "recsys.auxiliaries.pretraining",
    "recsys.llm.slmrec": "recsys.encoders.slmrec",
    "recsys.objectives.propensity": "recsys.weighting.propensity",
    "recsys.objectives.reasoning": "recsys.auxiliaries.reasoning",
    "recsys.objectives.unirec": "recsys.auxiliaries.unirec",
}
_CLASSES = {
    "recsys.augment.pairs": ("recsys.auxiliaries", {"CL4SRec": "cl4srec", "CoSeRec": "coserec", "DuoRec": "duorec"}),
    "recsys.augment.views": (
        "recsys.augmentations",
        {
            "Crop": "crop", "Mask": "mask", "Reorder": "reorder", "Substitute": "substitute", "Insert": "insert",
            "OneOf": "choice", "DistinctPair": "choice",
        },
    ),
    "recsys.data.negatives": (
        "recsys.negatives",
        {"UniformNegatives": "uniform", "InBatchNegatives": "in_batch"},
    ),
    "recsys.data.targets": (
        "recsys.targets",
        {"NextItem": "next_item", "LastItem": "last_item", "OneTarget": "one_target", "MaskedItems": "masked_items"},
    ),
    "recsys.encoders.recformer": ("recsys.items", {"RecformerItems": "recformer"}),
    "recsys.llm.slmrec": ("recsys.targets", {"LastOfUser": "last_item"}),
}  # fmt: skip


def present(name: str) -> str:
    """``module:Class`` as it is called now.

    >>> present("recsys.augment.views:Crop"), present("recsys.items:IdItems"), present("mine.parts:Loss")
    ('recsys.augmentations.crop:Crop', 'recsys.items.ids:IdItems', 'mine.parts:Loss')
    """
    module, _, cls = name.partition(":")
    package, classes = _CLASSES.get(module, ("", {}))
    if cls in classes:
        return f"{package}.{classes[cls]}:{cls}"
    return f"{_MODULES[module]}:{cls}" if module in _MODULES else name
