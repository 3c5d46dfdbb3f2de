"""What stands in the tables: a row per model, its recipe and flags per data set, its seeds, its tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = ("ml-100k", "amazon-beauty", "ml-1m")
SEEDS = {"ml-100k": 5, "amazon-beauty": 3, "ml-1m": 1, "amazon-sports": 1}
REFERENCE = "sasrec"
SEED = "SEED"  # in flags: the seed of the run, for rows that go on from another
RUNS = "RUNS"  # in flags: the folder of the plan's runs, for rows that build on another

AS_WRITTEN = "no search: the recipe's knobs as written"
ON_WEIGHT = "the weight on validation with one seed, see weights.py"
AS_FULL = "the weights of {}"
AS_SASREC = "the knobs of SASRec's own row"
BY_HAND = "single runs by hand, see the text"


@dataclass(frozen=True)
class Row:
    """One model of the tables.

    ``recipe`` is a name in ``configs/``, a path, or one of these per data set; ``flags`` go to it on every data set,
    ``more`` on one of them. ``seeds`` overrides how many there are, ``fewer`` says why, ``unrun`` why a data set has
    no run at all. Differences are taken from the row ``reference`` (None: no comparison), from the row ``base`` where
    ReaRec is compared with the encoder it wraps, and from the rows in ``against``, which make the table of further
    comparisons.
    """

    name: str
    recipe: str | Mapping[str, str]
    flags: tuple[str, ...] = ()
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    data: tuple[str, ...] = DATA
    seeds: Mapping[str, int] = field(default_factory=dict)
    fewer: Mapping[str, str] = field(default_factory=dict)
    unrun: Mapping[str, str] = field(default_factory=dict)
    tuning: str = AS_WRITTEN
    reference: str | None = REFERENCE
    base: str | None = None
    against: tuple[str, ...] = ()

    @property
    def others(self) -> tuple[str, ...]:
        """The rows that this one is compared with."""
        return tuple(dict.fromkeys(filter(None, (self.reference, self.base, *self.against))))

    def recipe_for(self, data: str) -> str:
        """The recipe that trains this row on ``data``."""
        return self.recipe if isinstance(self.recipe, str) else self.recipe[data]

    def flags_for(self, data: str) -> list[str]:
        """The recipe's flags on ``data``; a recipe of one data set does not take its name."""
        named = ("--data", data) if isinstance(self.recipe, str) else ()
        return [*named, *self.flags, *self.more.get(data, ())]

    def seeds_for(self, data: str) -> range:
        """The seeds the plan asks for on ``data``."""
        return range(self.seeds.get(data, SEEDS[data]))


@dataclass(frozen=True)
class Plan:
    """The rows of one driver; ``name`` is that of its script and of its folders of runs and results.

    With ``outside`` it also takes models of RecBole that are no rows.
    """

    name: str
    rows: tuple[Row, ...]
    outside: bool = False
    data: tuple[str, ...] = DATA

    @property
    def script(self) -> str:
        """The driver, as it is called."""
        return f"benchmarks/quality/{self.name}.py"

    @property
    def by_name(self) -> dict[str, Row]:
        """The rows by name, each once."""
        return {row.name: row for row in self.rows}


def recbole(model: str) -> Row:
    """The row of a RecBole model, trained by RecBole; runs in an environment that has it."""
    return Row(
        f"recbole-{model.lower()}",
        str(HERE / "outside.py"),
        ("--model", model),
        seeds={"ml-100k": 1},
        fewer={"ml-100k": "RecBole trains one target per row, twice: hours on one core"},
        unrun=dict.fromkeys(("amazon-beauty", "ml-1m"), "an outside baseline, planned on ml-100k only"),
        tuning="no search: RecBole's defaults, at our width and length and batches of 512",
    )


def rearec(encoder: str, method: str) -> Row:
    """An encoder with ReaRec around it, under the knobs of its own row, which is its base."""
    own = encoder == REFERENCE
    long = "over half an hour a run on one core"
    return Row(
        f"rearec-{method}" if own else f"rearec-{encoder}-{method}",
        "rearec",
        ("--encoder", encoder, "--method", method),
        seeds={"amazon-beauty": 1} if own else {"ml-100k": 1 if encoder == "sigma" else 3},
        fewer={"amazon-beauty": long} if own else {"ml-100k": long} if encoder == "sigma" else {},
        unrun={} if own else {"ml-1m": "planned around SASRec only", "amazon-beauty": f"{long}; around SASRec only"},
        reference=REFERENCE if own else None,
        base=encoder,
    )


PLAN = (
    Row(
        REFERENCE,
        {"ml-100k": "sasrec_ml100k", "amazon-beauty": "sasrec_beauty", "ml-1m": "sasrec_ml1m"},
        more={"ml-100k": ("--no-baselines",), "amazon-beauty": ("--no-baselines",)},
        tuning=BY_HAND,
        reference=None,
    ),
    Row("gru4rec", "gru4rec"),
    Row("bert4rec", "bert4rec", tuning="two learning rates on ml-100k, on validation"),
    Row("mamba4rec", "mamba4rec"),
    Row(
        "sigma",
        "sigma",
        seeds={"ml-100k": 1, "amazon-beauty": 1},
        fewer=dict.fromkeys(("ml-100k", "amazon-beauty"), "a row per prefix: 20 minutes and more a run on one core"),
    ),
    Row("unirec", "unirec", unrun=dict.fromkeys(("amazon-beauty", "ml-1m"), "reads times, and these files have none")),
    rearec("sasrec", "erl"),
    rearec("sasrec", "prl"),
    *map(recbole, ("SASRec", "GRU4Rec")),
)

# Latent reasoning against the encoder it wraps, under the same knobs.
REAREC = tuple(rearec(encoder, method) for encoder in ("sasrec", "gru4rec", "sigma") for method in ("erl", "prl"))

# The protocol of the Mamba papers: one target per prefix, and the history stays among the candidates.
KEPT = (
    Row(
        "mamba4rec-history-kept", "mamba4rec", ("--train", "last", "--exclude", "none"),
        data=("amazon-beauty", "ml-1m"), seeds={"amazon-beauty": 1, "ml-1m": 1}, reference=None,
    ),
    Row(
        "sigma-history-kept", "sigma", ("--exclude", "none"),
        data=("amazon-beauty", "ml-1m"), seeds={"amazon-beauty": 1, "ml-1m": 1}, reference=None,
    ),
)  # fmt: skip

BACKBONE = "backbone"


def augmented(name: str, *flags: str, recipe: str = "", against: tuple[str, ...] = (), tuning: str = ON_WEIGHT) -> Row:
    """An auxiliary on the backbone, which is the same for all of them, against the backbone without it."""
    on_ml1m = name in (BACKBONE, "cl4srec", "laclrec")
    return Row(
        name,
        recipe or name,
        flags,
        seeds={"ml-100k": 3},
        unrun={} if on_ml1m else {"ml-1m": f"time; {BACKBONE}, cl4srec and laclrec come first there"},
        tuning=AS_SASREC if name == BACKBONE else tuning,
        reference=None if name == BACKBONE else BACKBONE,
        against=against,
    )


# Auxiliaries on SASRec with the full softmax: the method, and what shows whether its idea is what helps.
AUGMENTED = (
    augmented(BACKBONE, recipe="sasrec"),
    augmented("cl4srec"),
    augmented("coserec"),
    augmented("duorec", "--mode", "us_x"),
    augmented("duorec-un", "--mode", "un", recipe="duorec"),
    augmented("sracl", against=("sracl-shuffled",)),
    augmented("sracl-shuffled", "--shuffle", recipe="sracl", tuning=AS_FULL.format("sracl")),
    augmented("laclrec", against=("cl4srec", "laclrec-augmenter-off", "laclrec-triplet-off", "laclrec-stage-alone")),
    *(
        augmented(f"laclrec-{name}", *flags, recipe="laclrec", tuning=AS_FULL.format("laclrec"))
        for name, flags in (
            ("augmenter-off", ("--augmenter", "off")),
            ("triplet-off", ("--triplet", "0")),
            ("stage-alone", ("--contrast", "0", "--triplet", "0")),
        )
    ),
)

# The editor as its first stage leaves it: no row of the table (it does not rank yet), but a line below.
PRETRAINED = Row(
    "laclrec-pretrained", "laclrec", ("--epochs", "0"), data=("ml-100k", "amazon-beauty"),
    seeds=dict.fromkeys(("ml-100k", "amazon-beauty"), 1), reference=None,
)  # fmt: skip

GENERATIVE_DATA = ("ml-100k", "amazon-beauty", "amazon-sports")
VECTORS = {data: ("--vectors", f"{RUNS}/{data}/{REFERENCE}-seed0") for data in GENERATIVE_DATA}


def generative(
    name: str,
    recipe: str,
    *flags: str,
    more: Mapping[str, tuple[str, ...]] | None = None,
    against: tuple[str, ...] = (),
) -> Row:
    """A recommender over semantic ids, against SASRec and against what shows where its number comes from."""
    return Row(
        name, recipe, flags, more or {}, GENERATIVE_DATA,
        seeds={"ml-100k": 3, "amazon-beauty": 1, "amazon-sports": 1},
        fewer=dict.fromkeys(("amazon-beauty", "amazon-sports"), "time"),
        tuning=AS_SASREC if name == REFERENCE else BY_HAND,
        reference=None if name == REFERENCE else REFERENCE,
        against=against,
    )  # fmt: skip


# Items by codes. Controls: codes of other items (permuted), random codes; the same codes under another loss.
GENERATIVE = (
    generative(REFERENCE, "sasrec"),
    generative("rpg", "rpg", against=("rpg-permuted", "rpg-random")),
    generative("rpg-permuted", "rpg", "--control", "permuted"),
    generative("rpg-random", "rpg", "--tokens", "random"),
    generative("rpg-vectors", "rpg", more=VECTORS, against=("rpg",)),
    generative("codes-softmax", "rpg", "--loss", "items", against=("rpg",)),
    generative("codes-and-ids", "rpg", "--loss", "items", "--ids", more=VECTORS),
    generative("tiger", "tiger", against=("tiger-permuted", "tiger-random", "rpg")),
    generative("tiger-permuted", "tiger", "--control", "permuted"),
    generative("tiger-random", "tiger", "--tokens", "random"),
    generative("tiger-vectors", "tiger", more=VECTORS, against=("tiger",)),
    generative("tiger-tokens", "tiger", "--reads", "tokens", against=("tiger",)),
    generative("liger", "liger", against=("tiger",)),
)


def reasoned(name: str, *flags: str, goes_on: bool = False) -> Row:
    """An ablation of REG4Rec (a reconstruction), against the model without the reward stage, whose training it repeats
    unless it goes on from it."""
    base = "reg4rec"
    places = ("ml-100k", "amazon-beauty")
    more = {data: ("--base", f"{RUNS}/{data}/{base}-seed{SEED}") for data in places} if goes_on else {}
    return Row(
        name, "reg4rec", flags, more, data=places, seeds={"ml-100k": 3, "amazon-beauty": 1},
        fewer={"amazon-beauty": "time"}, tuning=BY_HAND, reference=REFERENCE, base=None if name == base else base,
    )  # fmt: skip


# REG4Rec: without rewards; codes, order and pruning apart; then the reward stage.
REG4REC = (
    reasoned("reg4rec", "--reward", "off"),
    reasoned("reg4rec-residual", "--reward", "off", "--tokens", "residual"),
    reasoned("reg4rec-fixed-order", "--reward", "off", "--order", "fixed"),
    reasoned("reg4rec-random-order", "--reward", "off", "--order", "random"),
    reasoned("reg4rec-corp", "--reward", "off", "--prune", "prediction", goes_on=True),
    reasoned("reg4rec-pars", "--reward", "pars", goes_on=True),
    reasoned("reg4rec-msra", "--reward", "msra", goes_on=True),
)

ENCODERS = Plan("encoders", (*PLAN, *REAREC, *KEPT), outside=True)
AUGMENT = Plan("augment", (*AUGMENTED, PRETRAINED))
GENERATE = Plan("generative", (*GENERATIVE, *REG4REC), data=GENERATIVE_DATA)
