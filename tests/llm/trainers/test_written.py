"""The story of texts about users: what they name, where they rank the next item, what is kept, and the table."""

from __future__ import annotations

import copy
import importlib
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import recsys as rs
from recsys.llm.chat import Answer, Prompt

QUALITY = Path(__file__).parents[3] / "benchmarks" / "quality"
pytestmark = pytest.mark.skipif(not QUALITY.is_dir(), reason="the benchmarks are not here")
WORDS = ("river", "castle", "robot", "garden", "winter", "engine", "pirate", "violin", "desert", "lantern", "comet")
ITEMS = [f"{one.title()} {other.title()}" for at, one in enumerate(WORDS) for other in WORDS[at + 1 :]]  # 55


class Echo:
    """A writer that repeats what it is told about, with what it was asked to draw."""

    name = "echo"

    def __init__(self, asked: list[tuple[str, str, float, int]], steering: Any = ()) -> None:
        self.asked, self.steering, self.temperature, self.seed = asked, list(steering), 0.0, 0

    @property
    def settings(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "seed": self.seed, "steered": [one.settings for one in self.steering]}

    def sampled(self, temperature: float, seed: int) -> Echo:
        other = copy.copy(self)
        other.temperature, other.seed = temperature, seed
        return other

    def write(self, prompts: list[Prompt], done: Any) -> None:
        for at, prompt in enumerate(prompts):
            self.asked.append((prompt.system, prompt.user, self.temperature, self.seed))
            told = prompt.user.partition("these films: ")[2].partition(".\n")[0]
            done(at, Answer(f"This person likes {told} {self.seed % 7}"))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(QUALITY))
    module = importlib.import_module("written")
    random = np.random.default_rng(0)
    rows = [(user, int(item), at) for user in range(9)
            for at, item in enumerate(random.permutation(len(ITEMS))[: 6 + user])]  # fmt: skip
    events = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    items = pl.DataFrame({"item": range(len(ITEMS)), "title": ITEMS})
    data = rs.Dataset.scan(events, time="time", items=items, name="films")
    monkeypatch.setattr(rs, "load", lambda name: data, raising=False)
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    return module


def test_what_a_text_names() -> None:
    import sys

    sys.path.insert(0, str(QUALITY))
    try:
        from written import named, normal
    finally:
        sys.path.remove(str(QUALITY))
    known = {normal(title): at for at, title in enumerate(["Godfather, The (1972)", "Wizard of Oz, The", "Heat"], 1)}
    text = 'They enjoy films like The Godfather, "Heat," and the Wizard of Oz. Big Fun is not in it. So "A Big Lie".'
    assert named(text, known) == [("The Godfather", 1), ("Heat", 2 + 1), ("Wizard of Oz", 2), ("A Big Lie", None)]
    assert named("This person likes horror, drama and Romance.", known) == []
    assert named("It is The Big Lie of Old Men, or heat.", known) == [("The Big Lie of Old Men", None)]
    assert named("", known) == []
    known |= {normal("Star Trek: First Contact"): 4}
    assert named("They like Star Trek: First Contact, and new.", known) == [("Star Trek: First Contact", 4)]


def test_ranks_leave_out_the_history_and_share_ties(written: Any) -> None:
    split = rs.load("films").split(rs.LeaveLast(), audit=False)
    index = np.arange(len(split.test))
    owner, targets = split.test.targets(index)
    titles = split.item_text["title"]
    exact = [titles[target] for target in targets]
    assert owner.tolist() == index.tolist()
    ranks = written.ranks_of(split, index, exact, "hashed")
    assert (ranks == 1).all(), "a text that is the item's own"
    users = split.test.users.tolist()
    alone = split.num_items - np.array([len(set(split.train.history(user).tolist())) + 1 for user in users])
    ranks = written.ranks_of(split, index, ["", *exact[1:]], "hashed")
    assert ranks[0] == (alone[0] + 1) / 2 and (ranks[1:] == 1).all()
    near = written.ranks_of(split, index, [titles[split.train.history(user)[0]] for user in users], "hashed")
    matrix, _ = rs.embed(split, model="hashed", progress=False).aligned(split.items)
    for at, user in enumerate(users):
        mine = matrix[split.train.history(user)[0]]
        _, seen = split.test.history(np.array([at]))
        scores = {item: float(mine @ matrix[item]) for item in range(1, split.num_items + 1) if item not in seen}
        above = sum(value > scores[targets[at]] + 1e-6 for value in scores.values())
        equal = sum(abs(value - scores[targets[at]]) <= 1e-6 for value in scores.values())
        assert near[at] == pytest.approx(1 + above + (equal - 1) / 2)


def test_rows_share_samples_and_are_kept(written: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str, float, int]] = []
    monkeypatch.setattr(written, "writer_of", lambda told, steering: Echo(asked, steering))
    told = Namespace(samples=3, temperature=0.7, runs=tmp_path)
    shown = [["River Castle", "Robot Comet"], ["Garden Winter"], ["Engine Pirate"]]
    one = written.texts_of("sample", shown, 0, told)
    assert len(asked) == 3 and all("River Castle; Robot Comet" in text for text in one[:1])
    many = written.texts_of("gsa", shown, 0, told)
    temperatures = [temperature for _, _, temperature, _ in asked[3:]]
    assert temperatures == [0.7] * 6 + [0.0] * 3, "two samples more of each, and the aggregate"
    assert all(one[0] in user for _, user, _, _ in asked[9:10]), "the first of its samples is that of the other row"
    before = len(asked)
    assert written.texts_of("gsa", shown, 0, told) == many and written.texts_of("sample", shown, 0, told) == one
    assert len(asked) == before, "all of it was kept"
    steered = written.texts_of("adacad", shown, 0, told)
    assert len(asked) == before + 3 and steered == one, "drawn with the seed of the sample"
    assert "Castle" not in written.without_history(Prompt("s", asked[0][1])).user
    assert written.texts_of("titles", shown, 0, told)[1] == "Garden Winter"
    others = written.texts_of("another's", shown, 0, told)
    assert sorted(others) == sorted(one) and all(mine != other for mine, other in zip(one, others, strict=True))
    assert written.texts_of("sample", shown, 1, told) != one


def test_a_table_compares_rows_of_the_same_settings(
    written: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, str, float, int]] = []
    monkeypatch.setattr(written, "writer_of", lambda told, steering: Echo(asked, steering))
    given = ["written.py", "--users", "6", "--samples", "2", "--encoder", "hashed", "--seeds", "0", "1"]
    monkeypatch.setattr("sys.argv", [*given, "--runs", str(tmp_path / "runs"), "--results", str(tmp_path)])
    written.main()
    folder = tmp_path / "written" / "ml-100k"
    sample = [np.load(folder / f"sample-seed{seed}.npy") for seed in (0, 1)]
    titles = [np.load(folder / f"titles-seed{seed}.npy") for seed in (0, 1)]
    text = (tmp_path / "written-ml-100k.md").read_text(encoding="utf-8")
    change = np.mean([after[1] - before[1] for after, before in zip(titles, sample, strict=True)])
    line = next(one for one in text.splitlines() if one.startswith("| titles"))
    assert f"{change:+.4f}" in line and line.split("|")[-2].strip() == "2"
    told = json.loads((folder / "titles-seed0.json").read_text(encoding="utf-8"))
    assert told["in catalogue"] == told["in history"] == 1.0
    read = [json.loads(line) for line in (tmp_path / "runs" / "titles-seed0.jsonl").read_text().splitlines()]
    assert len({one["user"] for one in read}) == 6 and all(one["text"] for one in read)
    count = len(asked)
    written.main()
    assert len(asked) == count
    monkeypatch.setattr("sys.argv", [*given, "--most", "2", "--only", "titles", "--runs", str(tmp_path / "runs"),
                                     "--results", str(tmp_path)])  # fmt: skip
    written.main()
    text = (tmp_path / "written-ml-100k.md").read_text(encoding="utf-8")
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")] == [
        "text",
        "---",
        "titles",
    ]
