"""Cards are checked when read, and loading one gives the data set it describes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from recsys.cards.card import Card, card, fetch, fetch_file, load, names
from recsys.errors import DataError, DataWarning

EVENTS = b"user,item,time\nann,a,1000000000\nann,b,1000000060\nbob,b,1000000120\nbob,c,1000000180\n"
ITEMS = b"id,title\n7,Anchor\n8,Buoy\n9,Cleat\n"
MAP = b"number\titem\n7\ta\n8\tb\n9\tc\n"


@pytest.fixture(autouse=True)
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RECSYS_MIRROR", str(tmp_path / "mirror"))
    folder = tmp_path / "mirror" / "toy"
    folder.mkdir(parents=True)
    return folder


def described(name: str, body: bytes, alternative: bool = False) -> str:
    table = "alternatives.files" if alternative else "files"
    return f'[{table}."{name}"]\nsha256 = "{hashlib.sha256(body).hexdigest()}"\nbytes = {len(body)}\n'


HEAD = 'name = "toy"\ntitle = "Toy"\nlicence = "none"\ncitation = "nobody"\norder = "time"\n'
READ = '[events]\npath = "events.csv"\ntime = "time"\ntime_unit = "s"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "toy.toml"
    path.write_text(text)
    return path


def test_every_shipped_card_can_be_read() -> None:
    assert {"ml-100k", "ml-1m", "ml-20m", "amazon-beauty", "steam", "gowalla"} <= set(names())
    for name in names():
        found = card(name)
        assert found.name == name and found.citation and found.licence
        for layout in found.layouts:
            assert layout.events is None or layout.expected
            assert all(wanted.sources for wanted in layout.files.values())
    assert [name for name in names() if all(w.sha256 is None for w in card(name).layouts[0].files.values())] == [
        "ml-20m"
    ]


def test_the_default_data_set_needs_only_a_package_index() -> None:
    layout = card("ml-100k").layouts[0]
    assert sorted(layout.needed()) == ["ml-100k.inter", "ml-100k.item"]
    for name in layout.needed():
        assert layout.files[name].sha256 and any(s.startswith("pypi:recbole==") for s in layout.files[name].sources)


def test_load_reads_events_and_items_as_the_card_says(tmp_path: Path, mirror: Path) -> None:
    (mirror / "events.csv").write_bytes(EVENTS)
    (mirror / "items.csv").write_bytes(ITEMS)
    (mirror / "map.tsv").write_bytes(MAP)
    files = described("events.csv", EVENTS) + described("items.csv", ITEMS) + described("map.tsv", MAP)
    items = '[items]\npath = "items.csv"\nitem = "id"\nvia = { path = "map.tsv", from = "number", to = "item" }\n'
    path = write(tmp_path, HEAD + "[expected]\nusers = 2\nitems = 3\nevents = 4\n" + READ + items + files)
    data = load(path)
    loaded = data.prepare()
    assert data.name == "toy" and data.expected == {"users": 2, "items": 3, "events": 4}
    assert loaded.prepared.num_users == 2 and len(loaded.prepared.items) == 4 and loaded.prepared.order == "time"
    rows = loaded.items.rows(["a", "c"])
    assert list(loaded.item_text["title"][rows]) == ["Anchor", "Cleat"]


def test_a_card_may_say_the_kinds_of_columns(tmp_path: Path, mirror: Path) -> None:
    events = b"user,item,time,device\nu,a,1,tv\nu,b,2,pad\nv,a,3,tv\n"
    items = b"item,price,tags\na,1.5,x|y\nb,,y\n"
    (mirror / "events.csv").write_bytes(events)
    (mirror / "items.csv").write_bytes(items)
    reading = '[events]\npath = "events.csv"\nevent_columns = { device = "category" }\n'
    reading += '[items]\npath = "items.csv"\nkinds = { price = "number", tags = "list" }\n'
    files = described("events.csv", events) + described("items.csv", items)
    loaded = load(write(tmp_path, HEAD + reading + files)).prepare()
    assert loaded.prepared.features is not None and loaded.prepared.features.kinds == {"device": "category"}
    assert loaded.item_features is not None
    assert loaded.item_features.kinds == {"price": "number", "tags": "list"}


def test_load_data_that_come_split(tmp_path: Path, mirror: Path) -> None:
    parts = {"train.txt": b"1 10 11\n2 11\n", "test.txt": b"1 12\n"}
    for name, body in parts.items():
        (mirror / name).write_bytes(body)
    splits = '[events]\nsplits = { train = "train.txt", test = "test.txt" }\nformat = "sequences"\n'
    text = HEAD.replace('"time"', '"none"') + splits + "".join(described(*part) for part in parts.items())
    prepared = load(write(tmp_path, text)).prepare().prepared
    assert prepared.order == "none" and sorted(prepared.parts.tolist()) == [0, 0, 0, 2]


def test_an_alternative_is_taken_when_the_files_cannot_be_had_and_says_so(tmp_path: Path, mirror: Path) -> None:
    other = EVENTS.replace(b",", b"\t")
    (mirror / "events.tsv").write_bytes(other)
    alternative = (
        '[[alternatives]]\nnote = "tabs"\norder = "day"\n'
        '[alternatives.events]\npath = "events.tsv"\ntime = "time"\ntime_unit = "s"\n'
    ) + described("events.tsv", other, alternative=True)
    path = write(tmp_path, HEAD + READ + described("events.csv", EVENTS) + alternative)
    with pytest.warns(DataWarning, match="tabs"):
        assert load(path).prepare().prepared.order == "day"
    (mirror / "events.csv").write_bytes(EVENTS)
    assert list(fetch(path).files) == ["events.csv"]


def test_files_that_reading_does_not_need_are_fetched_on_request(tmp_path: Path, mirror: Path) -> None:
    (mirror / "events.csv").write_bytes(EVENTS)
    path = write(tmp_path, HEAD + READ + described("events.csv", EVENTS) + described("items.csv", ITEMS))
    assert list(fetch(path).files) == ["events.csv"]
    with pytest.raises(DataError, match=r"items\.csv"):
        fetch(path, extras=True)
    (mirror / "items.csv").write_bytes(ITEMS)
    assert len(fetch(path, extras=True).files) == 2 and "items.csv" in str(fetch(path, extras=True))
    assert fetch_file(path, "items.csv") == mirror / "items.csv"
    with pytest.raises(DataError, match=r"did you mean 'items\.csv'"):
        fetch_file(path, "item.csv")


def test_a_card_without_interactions_says_so(tmp_path: Path, mirror: Path) -> None:
    (mirror / "items.csv").write_bytes(ITEMS)
    items = '[items]\npath = "items.csv"\nitem = "id"\n'
    path = write(tmp_path, HEAD + 'note = "Texts only."\n' + items + described("items.csv", ITEMS))
    with pytest.raises(DataError, match=r"Texts only\."):
        load(path)
    assert list(fetch(path).files) == ["items.csv"]


def test_missing_files_name_the_folder_to_put_them_into(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + READ + described("events.csv", EVENTS))
    with pytest.raises(DataError, match="RECSYS_MIRROR") as raised:
        load(path)
    assert str(tmp_path / "cache" / "datasets" / "toy") in str(raised.value)
    home = tmp_path / "cache" / "datasets" / "toy"
    home.mkdir(parents=True)
    (home / "events.csv").write_bytes(EVENTS)
    assert load(path).prepare().prepared.num_users == 2


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'ml-100k'"):
        load("ml-10k0")
    with pytest.raises(DataError, match="no card file"):
        load("nowhere/toy.toml")


GOOD = HEAD + READ + described("events.csv", EVENTS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "TOML"),
        (GOOD.replace('licence = "none"\n', ""), "licence"),
        (GOOD.replace('name = "toy"', 'name = "other"'), "same"),
        (GOOD.replace('"time"\n', '"sometimes"\n', 1), "order"),
        (GOOD.replace("citation", "cite"), "citation"),
        (GOOD.replace('time = "time"', 'tyme = "time"'), "did you mean 'time'"),
        (GOOD.replace("events.csv", "event.csv", 1), r"did you mean 'events\.csv'"),
        (GOOD.replace("bytes", "size"), "bytes"),
        (GOOD.replace(hashlib.sha256(EVENTS).hexdigest(), "abc"), "sha256"),
        (GOOD.replace(hashlib.sha256(EVENTS).hexdigest(), "unverified"), "bytes"),
        (GOOD + 'sources = ["ftp://somewhere"]\n', "source"),
        (GOOD.replace('path = "events.csv"\n', ""), "path"),
        (GOOD + "[expected]\nuser = 3\n", "users"),
        (GOOD + "[[alternatives]]\n" + described("events.csv", ITEMS, alternative=True), "another name"),
        (GOOD + '[items]\nitem = "id"\n', "path"),
        (GOOD.replace("events.csv", "../events.csv"), "folder"),
    ],
)
def test_a_card_that_is_wrong_says_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Card.read(write(tmp_path, text))


def test_notes_are_one_line(tmp_path: Path) -> None:
    text = GOOD.replace('citation = "nobody"', 'citation = """\nA. Person,\nB. Person\n"""')
    assert Card.read(write(tmp_path, text)).citation == "A. Person, B. Person"


@pytest.mark.network
def test_the_default_data_set_comes_from_the_package_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECSYS_MIRROR")
    loaded = load("ml-100k").prepare()
    assert (loaded.prepared.num_users, loaded.prepared.num_items, len(loaded.prepared.items)) == (943, 1682, 100_000)
    assert loaded.item_text["title"][loaded.items.rows(["50"])] == ["Star Wars"]


MIRROR = os.environ.get("RECSYS_MIRROR", "")


@pytest.mark.slow
@pytest.mark.skipif(not MIRROR, reason="RECSYS_MIRROR is not set")
@pytest.mark.parametrize("name", [name for name in names() if card(name).layouts[0].events])
def test_shipped_cards_count_what_they_expect(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (Path(MIRROR) / (card(name).folder or name)).is_dir():
        pytest.skip(f"the mirror has no {name}")
    monkeypatch.setenv("RECSYS_MIRROR", MIRROR)
    prepared = load(name).prepare().prepared
    found = {"users": prepared.num_users, "items": prepared.num_items, "events": len(prepared.items)}
    assert found == card(name).layouts[0].expected
