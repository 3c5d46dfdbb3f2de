"""Shared knobs: a dataclass parameter is called, documented and recorded by its fields."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

import pytest

from recsys.runs.knobs import flat


@dataclass(frozen=True)
class Training:
    """How it is trained.

    Args:
        epochs: most epochs
            of training.
        seed: of everything.
    """

    epochs: int = 60
    seed: int = 0


@dataclass(frozen=True)
class Knobs(Training):
    """Sizes as well.

    Args:
        dim: width (default: that of the data).
    """

    dim: int | None = None
    names: list[str] = field(default_factory=list)


def run(data: str = "toy", knobs: Knobs = Knobs(epochs=200), *, weight: float = 0.1) -> tuple[str, Knobs, float]:
    """Run it.

    Args:
        data: which data.
        weight: of the loss.
        seed: of the batches only.

    Raises:
        ValueError: never.
    """
    return data, knobs, weight


def test_fields_are_called_by_name_and_keep_the_defaults_of_the_recipe() -> None:
    called = flat(run)
    assert called() == ("toy", Knobs(epochs=200), 0.1)
    assert called("other", dim=8, seed=3, weight=0.0) == ("other", Knobs(epochs=200, seed=3, dim=8), 0.0)
    parameters = inspect.signature(called).parameters
    assert list(parameters) == ["data", "dim", "names", "epochs", "seed", "weight"]
    assert parameters["epochs"].default == 200 and parameters["dim"].annotation == int | None
    with pytest.raises(TypeError, match="dimension"):
        called(dimension=3)
    with pytest.raises(TypeError, match="knobs"):
        called(knobs=Knobs())


def test_every_field_is_documented_once_and_the_recipe_has_the_last_word() -> None:
    said = inspect.getdoc(flat(run)) or ""
    lines = ["data: which data.", "dim: width (default: that of the data).", "epochs: most epochs of training."]
    assert said.startswith("\n    ".join(["Run it.\n\nArgs:", *lines]))
    assert "    seed: of the batches only." in said and "of everything" not in said
    assert said.rstrip().endswith("Raises:\n    ValueError: never.")


def test_a_default_is_said_once() -> None:
    def wide(knobs: Knobs = Knobs(dim=64)) -> None:
        """Run it."""

    said = inspect.getdoc(flat(wide)) or ""
    assert "    dim: width.\n" in said


def test_a_function_without_dataclasses_is_left_alone() -> None:
    def plain(epochs: int = 1) -> int:
        return epochs

    assert flat(plain) is plain


def test_a_name_that_is_there_twice_is_refused() -> None:
    def clash(epochs: int = 1, knobs: Training = Training()) -> None: ...

    with pytest.raises(TypeError, match="epochs twice"):
        flat(clash)
