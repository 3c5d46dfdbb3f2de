"""REG4Rec (arXiv 2508.15308), reconstructed: items as sets of codes, generated in an order that is chosen on the way.

The body of the paper was not at hand, and no code is published: what is known are the abstract and summaries of it, and
all that they leave open is ours (:mod:`recsys.semantic_ids.mpq`, :mod:`recsys.generative.set_decoder`,
:mod:`recsys.generative.set_beam`, :mod:`recsys.generative.rewards`). Its published numbers cannot be compared with.

Run: ``recsys fit reg4rec`` (others: ``--data amazon-beauty``, ``--data amazon-sports``, which need ``RECSYS_MIRROR``).
Ablations, each a flag: ``--tokens mpq|residual|product``, ``--order confidence|random|fixed``, ``--reward
msra|pars|off``, ``--prune off|prediction|head``. Paths are not pruned by default, as the paper's criterion is not
known. Ties between items of equal codes are in the order of the catalogue, not by popularity.
"""

from __future__ import annotations

from typing import Any, Literal

from _codes import Codes, folder_of
from _knobs import Generative

import recsys as rs
from recsys.generative.rewards import PathRewards
from recsys.generative.set_beam import SetBeam
from recsys.generative.set_decoder import SetDecoder
from recsys.hooks import PartList
from recsys.train.settings import Stage

CODES: dict[str, dict[str, Any]] = {
    "ml-100k": {"tokens": "mpq", "levels": 4, "size": 64},
    "amazon-beauty": {"tokens": "mpq", "levels": 4, "size": 256},
    "amazon-sports": {"tokens": "mpq", "levels": 4, "size": 256},
}
AMAZON: dict[str, Any] = {
    "dropout": 0.2, "max_length": 20, "batch_size": 256, "learning_rate": 2e-3, "windows": "last", "dim": 64,
}  # fmt: skip
KNOBS: dict[str, dict[str, Any]] = {
    "ml-100k": {
        "dropout": 0.2, "max_length": 50, "batch_size": 64, "learning_rate": 4e-3, "windows": "sliding", "dim": 64,
    },
    "amazon-beauty": AMAZON,
    "amazon-sports": AMAZON,
}  # fmt: skip


def run(
    order: Literal["confidence", "random", "fixed"] = "confidence",
    reward: Literal["msra", "pars", "off"] = "msra",
    prune: Literal["prediction", "head", "off"] = "off",
    keep: float = 0.75,
    omega: float = 0.0,
    others: float = 0.5,
    own: float = 0.5,
    temperature: float = 0.1,
    order_free: bool = True,
    reward_epochs: int = 2,
    reward_rate: float = 1e-4,
    samples: int = 16,
    horizon: int = 3,
    discount: float = 0.5,
    kl: float = 0.01,
    category: str = "",
    base: str = "",
    num_layers: int = 2,
    decoder_layers: int = 1,
    num_heads: int = 2,
    beam: int = 50,
    valid_users: int | None = 2000,
    codes: Codes = Codes(),
    knobs: Generative = Generative(),
) -> rs.Run:
    """A decoder of sets of codes behind a causal encoder, then a stage of rewards.

    Args:
        order: the codebook that comes next: of the decoder's confidence, drawn at random, or in a fixed order.
        reward: a stage of rewards: by the next items (msra), by the next item alone (pars), or none (off).
        prune: what drops paths of the search: predictions that they contradict, the decoder's own verdict, or nothing.
        keep: share of the beams that pruning leaves.
        omega: weight of the consistency of a path in its score.
        others: weight of the codebooks that are left in the loss of a step.
        own: share of the targets that are learned in the model's own order, with --order confidence.
        temperature: divides the cosines of states and codes.
        order_free: what comes next depends on the set of codes alone, not on the order in which they came.
        reward_epochs: epochs of the stage of rewards.
        reward_rate: learning rate of that stage.
        samples: paths that are compared for each history.
        horizon: next items that a path is rewarded by, with --reward msra.
        discount: weight of each further of them.
        kl: weight of the divergence from the decoder of before that stage.
        category: column of the items; paths to the right category are rewarded.
        base: folder of a run of this recipe, whose supervised training is not done again: the stage of rewards goes on
            from there, and with --reward off nothing is trained, so that another search can be tried. Encoder, decoder
            and codes are those of that run, whatever is said of them here.
        num_layers: number of Transformer blocks of the encoder.
        decoder_layers: layers of the decoder.
        num_heads: attention heads per block or layer.
        beam: beams of the search.
        valid_users: users ranked after each epoch, drawn once; all where there are fewer.
    """
    values = KNOBS[knobs.data]
    knobs = knobs.filled(values)
    dropout, max_length = knobs.dropout or 0.0, knobs.max_length or 20
    split = rs.load(knobs.data).split(rs.LeaveLast())
    pruned = None if prune == "off" else prune
    search = SetBeam(beam, order, pruned, keep, omega if pruned else 0.0)
    if base:
        model = started(base, order, prune)
        decoder, model.search = model.decoder, search
    else:
        folder = folder_of(split, codes, CODES[knobs.data])
        decoder = SetDecoder(
            knobs.dim, len(rs.SemanticIds.load(folder).sizes), decoder_layers, num_heads, dropout=dropout,
            temperature=temperature, order=order, others=others, own=own, order_free=order_free,
            reflection=0.1 if prune == "head" else 0.0,
        )  # fmt: skip
        model = rs.Generator(
            items=rs.CodeItems(knobs.dim, folder, std=0.36),
            encoder=rs.SASRec(knobs.dim, num_layers, num_heads, dropout, max_length, layout="pre"),
            decoder=decoder,
            search=search,
        )
    rewards = PathRewards(
        decoder, samples, horizon if reward == "msra" else 1, discount,
        category_column=category or None, kl=kl, order=order,
    )  # fmt: skip
    model.auxiliaries = PartList([] if reward == "off" else [rewards])
    supervised = Stage(0 if base else knobs.epochs, losses=["loss"], name="supervised")
    second = Stage(
        reward_epochs, losses=["loss", "PathRewards0"], train=["decoder"], learning_rate=reward_rate, name="reward"
    )
    stages = [supervised] if reward == "off" else [second] if base else [supervised, second]
    training = knobs.training(
        windows=values["windows"], valid_users=valid_users, stages=None if reward == "off" and not base else stages
    )
    return rs.Run(model, split, training, evaluate=knobs.evaluation(), name="REG4Rec (reconstruction)")


def started(folder: str, order: str, prune: str) -> Any:
    """The model of a run of this recipe.

    Raises:
        ValueError: it is something else, or was trained for another order or without what ``prune`` asks.
    """
    model = rs.load_run(folder)
    decoder = getattr(model, "decoder", None)
    if not isinstance(decoder, SetDecoder):
        raise ValueError(f"--base names a run of the recipe reg4rec; {folder} holds a {type(model).__name__}")
    if decoder.order != order:
        raise ValueError(f"{folder} was trained with --order {decoder.order}: say so here as well, found {order}")
    if prune == "head" and not decoder.reflection:
        raise ValueError(f"--prune head asks a part of the decoder that {folder} was trained without")
    return model
