"""The optimizer of a stage: what it trains, its named parameter groups, warm-up and decay of rates, its saved state.

A part of the model may ask for rates of its own by the hook ``param_groups()``, see
:class:`recsys.protocols.ParamGroup`; what no part asks about is the group "default".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from recsys.errors import closest
from recsys.hooks import having
from recsys.protocols import ParamGroup
from recsys.train.settings import Stage, Training

DEFAULT = "default"  # the group of the parameters that no part asks about


@dataclass(frozen=True)
class Group:
    """Parameters by their name in the model, and how they are trained; None: as the run's others."""

    name: str
    learning_rate: float | None = None
    factor: float = 1.0  # of the rate of the run or the stage, where there is no learning_rate
    weight_decay: float | None = None
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)

    def rate(self, training: Training, stage: Stage) -> float:
        """The learning rate of the group in ``stage``, before warm-up and decay."""
        asked = stage.learning_rate
        given = asked if isinstance(asked, Mapping) else {DEFAULT: asked} if asked is not None else {}
        if self.name in given:
            return float(given[self.name])
        if self.learning_rate is not None:
            return self.learning_rate
        return self.factor * float(given.get(DEFAULT, training.learning_rate))

    def describe(self) -> dict[str, Any]:
        """Sizes and wishes, for ``config.json``."""
        wishes = {name: getattr(self, name) for name in ("learning_rate", "factor", "weight_decay")}
        asked = {
            name: value for name, value in wishes.items() if value is not None and (name, value) != ("factor", 1.0)
        }
        return {"parameters": sum(one.numel() for one in self.parameters.values()), **asked}


def groups_of(model: nn.Module) -> list[Group]:
    """The parameter groups of a bound model: "default" first (if there is anything in it), then as parts name them.

    Raises:
        ValueError, TypeError: a part asks for a group in a way that makes no sense, two parts ask for different groups
            of one name, or a parameter is in two groups.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups: dict[str, Group] = {}
    for path, part in having(model, "param_groups", used=True):
        title = f"{type(part).__name__}.param_groups()" + f" ({path})" * bool(path)
        found = part.param_groups()
        if not isinstance(found, Mapping):
            raise TypeError(f"{title} gives groups by name, a dict; found {type(found).__name__}")
        for name, wish in found.items():
            group = _group(title, name, wish)
            if replace(groups.get(name, group), parameters={}) != group:
                raise ValueError(
                    f"{title} asks for the group {name!r} with other rates than another part that has a group of that "
                    "name: give one of them another name"
                )
            group = groups.setdefault(name, group)
            for parameter in _chosen(title, part, name, wish):
                where = names.get(id(parameter))
                if where is None:
                    raise ValueError(
                        f"{title} names parameters that are not the model's: its part is not a module of it"
                    )
                others = [other.name for other in groups.values() if other is not group and where in other.parameters]
                if others:
                    raise ValueError(
                        f"{title} puts {where} into the group {name!r}, and it is in {others[0]!r} already: a "
                        "parameter has one learning rate, so name it in one group only"
                    )
                group.parameters[where] = parameter
    taken = {name for group in groups.values() for name in group.parameters}
    rest = {name: one for name, one in model.named_parameters() if name not in taken}
    return [Group(DEFAULT, parameters=rest)] * bool(rest) + list(groups.values())


def make_optimizer(model: nn.Module, training: Training, stage: Stage) -> torch.optim.Optimizer:
    """The optimizer of a stage: the caller's own, or Adam (AdamW if there is weight decay), fused where that exists.

    Raises:
        ValueError: a stage sets the rate of a group that no part asks for, or the caller's optimizer leaves one out.
    """
    groups = groups_of(model)
    if isinstance(stage.learning_rate, Mapping):
        known = [DEFAULT, *(group.name for group in groups)]
        for name in stage.learning_rate:
            if name not in known:
                raise ValueError(
                    f"stage {stage.name!r} sets the learning rate of {name!r}, and no part of the model asks for a "
                    f"parameter group of that name; {closest(str(name), known)}"
                )
    trained = [(group, [one for one in group.parameters.values() if one.requires_grad]) for group in groups]
    trained = [(group, chosen) for group, chosen in trained if chosen]
    if training.optimizer is not None:
        return _callers(training, trained)
    rates = [group.rate(training, stage) for group, _ in trained]
    decays = [training.weight_decay if group.weight_decay is None else group.weight_decay for group, _ in trained]
    every = [one for _, chosen in trained for one in chosen]
    fused = training.precision != "16-mixed" and all(one.device.type in ("cpu", "cuda", "mps") for one in every)
    kind = torch.optim.AdamW if any(decays) else torch.optim.Adam
    asked = [
        {"params": chosen, "name": group.name, "lr": rate, "weight_decay": decay}
        for (group, chosen), rate, decay in zip(trained, rates, decays, strict=True)
    ]
    first, second = training.betas
    return kind(asked, lr=rates[0], betas=(first, second), weight_decay=decays[0], fused=fused)


def _callers(training: Training, trained: list[tuple[Group, list[nn.Parameter]]]) -> torch.optim.Optimizer:
    """The caller's optimizer. Where parts ask for groups it gets those, as torch has them, else the parameters."""
    assert training.optimizer is not None
    plain = [group.name for group, _ in trained] == [DEFAULT]
    asked: list[Any] = trained[0][1] if plain else []
    for group, chosen in [] if plain else trained:
        own = {"lr": group.learning_rate, "weight_decay": group.weight_decay}
        kept = {name: value for name, value in own.items() if value is not None}
        asked.append({"params": chosen, "name": group.name, **kept})
    made = training.optimizer(asked)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"optimizer is a function from parameters to a torch optimizer; it gave {made!r}")
    if plain:
        return made
    found: dict[Any, list[dict[str, Any]]] = {}
    for one in made.param_groups:
        found.setdefault(one.get("of", one.get("name")), []).append(one)  # "of": a part of the group of that name
    for group, _ in trained:
        if group.name not in found:
            raise ValueError(
                f"the optimizer has no parameter group {group.name!r}, which a part of the model asks for: give the "
                "list that the function gets to the torch optimizer as it is (it holds dicts with params, name and "
                "what the part sets of lr and weight_decay)"
            )
        if group.learning_rate is None:
            for one in found[group.name]:
                one["lr"] *= group.factor
    return made


def warmed(steps: int, done: int) -> float:
    """The share of the learning rate that a warm-up over ``steps`` updates lets through after ``done`` of a stage.

    >>> warmed(4, 0), warmed(4, 3), warmed(4, 9), warmed(0, 0)
    (0.25, 1.0, 1.0, 1.0)
    """
    return min(1.0, (done + 1) / steps) if steps else 1.0


def left(decay: str, progress: float) -> float:
    """What a decay leaves of the learning rate after a share of the stage.

    >>> left("none", 0.5), left("linear", 0.25), left("cosine", 0.5)
    (1.0, 0.75, 0.5)
    """
    if decay == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1.0 - progress if decay == "linear" else 1.0


@contextmanager
def scaled(optimizer: torch.optim.Optimizer, factor: float) -> Iterator[None]:
    """All learning rates times ``factor`` for the step inside; the rates that the caller's own schedule set stay its.

    They are back before hooks behind the step see them. What the optimizer itself makes of its rates in the step is
    taken for a share of them.
    """
    if factor == 1.0:
        yield
        return
    groups, rates = optimizer.param_groups, [group["lr"] for group in optimizer.param_groups]
    lowered = [rate * factor for rate in rates]
    waiting = True

    def restore(*_: Any) -> None:
        nonlocal waiting
        if not waiting:
            return
        waiting = False
        for group, rate, low in zip(groups, rates, lowered, strict=False):
            group["lr"] = rate if group["lr"] == low or not factor else group["lr"] / factor

    for group, low in zip(groups, lowered, strict=True):
        group["lr"] = low
    handle = optimizer.register_step_post_hook(restore)
    hooks: Any = optimizer._optimizer_step_post_hooks
    hooks.move_to_end(handle.id, last=False)
    try:
        yield
    finally:
        handle.remove()
        restore()


def train_only(model: nn.Module, stage: Stage) -> None:
    """Let only the parameters that ``stage`` trains ask for gradients.

    Raises:
        ValueError: a name leads to no part of the model, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    parts = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
    for part in (*(stage.train or ()), *stage.freeze):
        if part not in parts:
            raise ValueError(f"the model has no part {part!r} with parameters; {closest(part, parts)}")
    for name, parameter in model.named_parameters():
        wanted = stage.train is None or _within(name, stage.train)
        parameter.requires_grad_(wanted and not _within(name, stage.freeze))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"nothing is left to train: train={stage.train}, freeze={list(stage.freeze)}")


def _within(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def told_groups(groups: list[Group], training: Training, stage: Stage) -> str:
    """One line about the groups, for the start of training; empty where there is only the default one."""
    if [group.name for group in groups] in ([], [DEFAULT]):
        return ""
    shown = []
    for group in groups:
        own = "" if training.optimizer is not None else f" at {group.rate(training, stage):g}"
        own += "" if group.weight_decay is None else f", weight decay {group.weight_decay:g}"
        shown.append(f"{group.name} ({group.describe()['parameters']:,} parameters{own})")
    return "parameter groups: " + ", ".join(shown)


def named_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """The optimizer's state by the names of parameters, not by their order; :func:`load_named_state` reads it."""
    state = optimizer.state_dict()
    if not {"state", "param_groups"} <= set(state):  # one of the caller's, with a state of its own kind
        return state
    names = _names(optimizer, model)
    return {
        **{name: value for name, value in state.items() if name != "param_groups"},
        "state": {names.get(key, key): value for key, value in state["state"].items()},
        "groups": [
            {**group, "name": group.get("name", str(number)), "params": [names[key] for key in group["params"]]}
            for number, group in enumerate(state["param_groups"])
        ],
    }


def load_named_state(optimizer: torch.optim.Optimizer, model: nn.Module, kept: dict[str, Any]) -> None:
    """Put the optimizer where :func:`named_state` found it, whatever the order of groups and of parameters in them.

    Raises:
        ValueError: it has other groups, or other parameters in one.
    """
    if "groups" not in kept:  # of a run of 0.1, by order, or of an optimizer with a state of its own kind
        called = [group.get("name") for group in optimizer.param_groups]
        optimizer.load_state_dict(kept)
        for group, name in zip(optimizer.param_groups, called, strict=True):
            group.update({} if name is None else {"name": name})
        return
    names = _names(optimizer, model)
    before, now = {group["name"]: group for group in kept["groups"]}, optimizer.state_dict()["param_groups"]
    found = {group.get("name", str(number)): group for number, group in enumerate(now)}
    if before.keys() != found.keys():
        raise ValueError(
            f"it has the optimizer's state of the parameter groups {', '.join(map(repr, before))}, and the model now "
            f"asks for {', '.join(map(repr, found))}"
        )
    for name, group in found.items():
        held, wanted = set(before[name]["params"]), {names[key] for key in group["params"]}
        if held != wanted:
            odd = sorted(held ^ wanted)
            raise ValueError(f"the parameter group {name!r} held other parameters: {', '.join(odd[:5])} differ")
    numbers = {name: key for key, name in names.items()}
    rest = {name: value for name, value in kept.items() if name != "groups"}
    state = {numbers.get(key, key): value for key, value in kept["state"].items()}
    groups = [{**before[name], "params": group["params"]} for name, group in found.items()]
    for group, own in zip(groups, now, strict=True):
        if "name" not in own:
            del group["name"]
    optimizer.load_state_dict({**rest, "state": state, "param_groups": groups})


def _names(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[Any, str]:
    """The name of each parameter by the number that the optimizer's ``state_dict()`` gives it."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    numbered = [one for group in optimizer.state_dict()["param_groups"] for one in group["params"]]
    held = [one for group in optimizer.param_groups for one in group["params"]]
    return {number: names.get(id(one), str(number)) for number, one in zip(numbered, held, strict=True)}


def _group(title: str, name: Any, wish: Any) -> Group:
    """What ``wish`` asks for, without its parameters."""
    if not isinstance(name, str) or name in ("", DEFAULT):
        raise ValueError(f"{title}: a group has a name of its own, not {name!r} ({DEFAULT!r} are all others)")
    if not isinstance(wish, Mapping):
        raise TypeError(f"{title}: the group {name!r} is a dict, see recsys.protocols.ParamGroup; found {wish!r}")
    known = ("parameters", *_NUMBERS)
    for key in wish:
        if key not in known:
            raise TypeError(f"{title}: the group {name!r} has no entry {key!r}; {closest(str(key), known)}")
    for key in _NUMBERS:
        value = wish.get(key, 1.0)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not (value >= 0 if key == "weight_decay" else value > 0):
            least = "at least 0" if key == "weight_decay" else "above 0"
            raise ValueError(f"{title}: {key} of the group {name!r} is a number {least}, found {value!r}")
    if "learning_rate" in wish and "factor" in wish:
        raise ValueError(f"{title}: the group {name!r} has a learning_rate and a factor of the run's: leave one out")
    return Group(name, **{key: wish[key] for key in _NUMBERS if key in wish})


_NUMBERS = ("learning_rate", "factor", "weight_decay")


def _chosen(title: str, part: Any, name: str, wish: ParamGroup) -> list[nn.Parameter]:
    """The parameters of ``part`` that a group names."""
    own = dict(part.named_parameters()) if isinstance(part, nn.Module) else {}
    patterns = wish.get("parameters")
    if isinstance(patterns, str):
        raise TypeError(f"{title}: parameters of the group {name!r} are a list of names, found {patterns!r}")
    if patterns is None:
        return list(own.values())
    found: dict[str, nn.Parameter] = {}
    for pattern in patterns:
        fits = {key: one for key, one in own.items() if _within(key, [pattern]) or fnmatchcase(key, pattern)}
        if not fits:
            raise ValueError(
                f"{title}: the group {name!r} names {pattern!r}, and no parameter of the part is called so or begins "
                f"with it; {closest(pattern, own)}"
            )
        found |= fits
    return list(found.values())
