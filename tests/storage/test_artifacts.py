import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from recsys.storage.artifacts import artifact, artifacts_root, differences, hash_folder
from recsys.storage.folders import read_manifest, write_folder

KIND, FACTS = "test.artifact", {"model": "a", "k": 10, "rule": ["user", None]}


class Fill:
    def __init__(self, text="made"):
        self.text, self.calls = text, 0

    def __call__(self, work):
        self.calls += 1
        (work / "inner").mkdir(exist_ok=True)
        (work / "inner" / "data.txt").write_text(self.text)
        (work / ".scratch").write_text("stays behind")
        return {"rows": 3}


def get(folder, fill, facts=FACTS, version=1, **more):
    return artifact(folder, KIND, version, facts, fill, **more)


def test_made_once_then_reused(tmp_path, capsys):
    fill, folder = Fill(), tmp_path / "deep" / "one"
    assert get(folder, fill) == (folder, False)
    assert capsys.readouterr().err == ""
    assert get(folder, fill, json.loads(json.dumps(FACTS))) == (folder, True)
    assert fill.calls == 1 and (folder / "inner" / "data.txt").read_text() == "made"
    assert capsys.readouterr().err.splitlines() == [f"reused {folder}"]
    manifest = read_manifest(folder, KIND, 1)
    assert manifest["facts"] == FACTS and manifest["rows"] == 3
    assert list(manifest["files"]) == ["inner/data.txt"]
    assert not (folder / ".scratch").exists() and not folder.with_name("one.work").exists()


def test_check_13_misses_when_model_k_or_pool_rule_changes(tmp_path, capsys):
    """sracl.md section 12, number 13, for any artifact: a hit with the same facts, a miss with each that differs."""
    facts = {"model": "minilm", "k": 10, "pool": "user"}
    get(tmp_path / "a", Fill(), facts)
    for name, value in {"model": "other", "k": 5, "pool": "prefix"}.items():
        fill = Fill()
        capsys.readouterr()
        assert get(tmp_path / "a", fill, {**facts, name: value})[1] is False and fill.calls == 1
        said = capsys.readouterr().err
        assert f"{name}: was {json.dumps(facts[name])}, is {json.dumps(value)}" in said and len(said.splitlines()) == 1
        get(tmp_path / "a", Fill(), facts)
        assert get(tmp_path / "a", fill, facts)[1] is True


def test_differences_name_new_and_lost_facts():
    assert differences({"a": 1}, {"b": 2}) == "a: was 1, is absent; b: was absent, is 2"
    assert differences({"a": None}, {}) == "a: was null, is absent"
    assert differences({}, {"a": None})
    assert differences({"a": 1}, {"a": 1}) == ""


def test_another_version_is_rebuilt(tmp_path, capsys):
    get(tmp_path / "a", Fill())
    assert get(tmp_path / "a", Fill("new"), version=2)[1] is False
    assert "format: was 1, is 2" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["change", "cut", "remove"])
def test_damaged_is_rebuilt_and_said(tmp_path, capsys, harm):
    folder, _ = get(tmp_path / "a", Fill())
    path = folder / "inner" / "data.txt"
    path.unlink() if harm == "remove" else path.write_text("mad" if harm == "cut" else "MADE")
    capsys.readouterr()
    assert get(folder, Fill())[1] is False
    assert path.read_text() == "made" and "damaged" in capsys.readouterr().err


def test_foreign_folders_are_refused(tmp_path):
    fill = Fill()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    write_folder(tmp_path / "other", "another.kind", 1, lambda partial: {})
    write_folder(tmp_path / "saved", KIND, 1, lambda partial: {})  # of the kind, but made by hand
    (tmp_path / "new.work").mkdir()
    (tmp_path / "new.work" / "thesis.tex").write_text("years of work")
    for name in ("mine", "other", "saved", "new"):
        with pytest.raises(FileExistsError, match="another folder"):
            get(tmp_path / name, fill)
    assert fill.calls == 0 and (tmp_path / "new.work" / "thesis.tex").exists()


def test_failed_call_leaves_what_was_there(tmp_path):
    folder, _ = get(tmp_path / "a", Fill())

    def fail(work):
        (work / "half").write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        get(folder, fail, {"model": "b"})
    assert get(folder, Fill())[1] is True and not folder.with_name("a.work").exists()


def test_work_survives_and_is_dropped_when_facts_differ(tmp_path, capsys):
    folder = tmp_path / "a"

    def fail(work):
        (work / "first").write_text("first")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        get(folder, fail, resume=True)
    seen = []

    def finish(work):
        seen.append((work / "first").exists())
        (work / "second").write_text("second")
        return {}

    get(folder, finish, {"model": "b"}, resume=True)
    assert seen == [False] and "dropped" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="stopped"):
        get(folder, fail, resume=True)
    get(folder, finish, resume=True)
    assert seen == [False, True]
    assert (folder / "first").read_text() == "first" and (folder / "second").exists()


def test_work_survives_kill_nine(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from recsys.storage.artifacts import artifact
def fill(work):
    (work / "first").write_text("first")
    os.kill(os.getpid(), signal.SIGKILL)
artifact(sys.argv[1], "test.artifact", 1, {"k": 1}, fill, resume=True)
"""
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], cwd=Path(__file__).parents[2])
    assert child.returncode == -9 and not (tmp_path / "a").exists()
    path, _ = get(tmp_path / "a", lambda work: {"found": (work / "first").read_text()}, {"k": 1}, resume=True)
    assert read_manifest(path, KIND, 1)["found"] == "first"


def test_interrupted_while_turning_into_the_folder_loses_nothing(tmp_path, monkeypatch):
    def exchange(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("recsys.storage.folders._exchange", exchange)
        with pytest.raises(KeyboardInterrupt):
            get(tmp_path / "a", Fill(), resume=True)
    assert (tmp_path / "a.work" / "inner" / "data.txt").exists()

    def finish(work):
        assert (work / "inner" / "data.txt").read_text() == "made"
        return {}

    assert get(tmp_path / "a", finish, resume=True)[1] is False


def test_without_links_files_are_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    folder, _ = get(tmp_path / "a", Fill())
    assert (folder / "inner" / "data.txt").read_text() == "made"


def test_facts_must_be_plain(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        get(tmp_path / "a", Fill(), {"weight": float("nan")})
    with pytest.raises(TypeError, match="JSON"):
        get(tmp_path / "a", Fill(), {"set": {1, 2}})


def test_root():
    assert artifacts_root("cache") == Path("cache/artifacts")


def test_of_two_at_once_one_makes_and_the_other_waits(tmp_path, capsys):
    begun, go_on, answers = threading.Event(), threading.Event(), []

    def slow(work):
        begun.set()
        assert go_on.wait(30)
        return {}

    first = threading.Thread(target=lambda: answers.append(get(tmp_path / "a", slow)[1]))
    first.start()
    assert begun.wait(30)
    fill = Fill()
    second = threading.Thread(target=lambda: answers.append(get(tmp_path / "a", fill)[1]))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    go_on.set()
    first.join(30)
    second.join(30)
    assert answers == [False, True] and fill.calls == 0
    assert "waiting" in capsys.readouterr().err


def test_hash_of_a_folder_sees_names_and_contents(tmp_path):
    def made(name, files):
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        return hash_folder(tmp_path / name)

    first = made("a", {"x": "1", "deep/y": "2"})
    assert made("b", {"deep/y": "2", "x": "1"}) == first
    assert len({first, made("c", {"x": "2", "deep/y": "1"}), made("d", {"x": "1", "y": "2"})}) == 3


def test_the_record_of_a_work_folder_goes_last(tmp_path, monkeypatch):
    """Killed while it is removed, what is left must still be known to be ours, or the next rebuild refuses it."""
    removed, real = [], os.unlink

    def unlink(path, *more, **options):
        removed.append(Path(path).name)
        return real(path, *more, **options)

    names = {f"{i}.bin" for i in range(20)}

    def fill(work):
        for name in names:
            (work / name).touch()
        return {}

    monkeypatch.setattr(os, "unlink", unlink)
    artifact(tmp_path / "one", KIND, 1, {"k": 1}, fill)
    assert set(removed) == {*names, ".started.json"} and removed[-1] == ".started.json"


def test_hostile_2_links_in_a_work_folder_are_not_written_through(tmp_path):
    mine, work = tmp_path / "mine.txt", tmp_path / "one.work"
    mine.write_text("mine")
    with pytest.raises(RuntimeError):
        get(tmp_path / "one", failing, resume=True)
    (work / "inner").mkdir()
    (work / "inner" / "data.txt").symlink_to(mine)
    get(tmp_path / "one", Fill("made"), resume=True)
    assert mine.read_text() == "mine" and (tmp_path / "one" / "inner" / "data.txt").read_text() == "made"


def failing(work):
    raise RuntimeError("stopped")
