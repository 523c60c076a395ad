import json
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest

from benchmarks import duel as harness
from benchmarks import tables
from benchmarks.duel import DuelConfig, duel, matrix_product
from benchmarks.result import Entry, Result, command
from benchmarks.worker import Contender, Failed


def contender(name, size, **settings):
    return Contender(name=name, make=matrix_product, arguments=(size,), **settings)


@pytest.fixture
def result() -> Result:
    entries = [
        Entry(name="ours", setting="plain", league="out of the box", ours=True, units=[8, 4, 6], seconds=[2, 2, 2]),
        Entry(name="peer", setting="plain", league="out of the box", units=[2, 2, 2], seconds=[1, 1, 1], peak=2**20),
        Entry(name="slow peer", setting="plain", league="out of the box", units=[1, 1, 1], seconds=[1, 1, 1]),
        Entry(name="ours", setting="bf16", league="our knobs, bf16", ours=True, units=[9, 9, 9], seconds=[1, 1, 1]),
    ]
    limits = [
        Entry(name="limit", setting=setting, league="limit", units=[30], seconds=[1]) for setting in ("plain", "bf16")
    ]
    return Result(title="A duel", unit="images", flops=1e9, entries=entries, limits=limits, sittings=1)


@pytest.mark.slow
def test_everybody_has_a_turn_in_each_round_and_who_cannot_is_left_out(monkeypatch):
    monkeypatch.setattr(harness, "LIMITS", [])
    contenders = [
        contender("ours", 8, ours=True),
        contender("broken", "no size"),
        contender("absent", 8, needs="no_such_package"),
        contender("bf16", 8, setting="bf16"),
    ]
    config = DuelConfig(rounds=3, steps=2, warmup=0, pause=0.0, settings=["plain"])
    found = duel("A duel", "GFLOP", contenders, config, flops=False)
    assert [entry.name for entry in found.entries] == ["ours"]
    assert found.entries[0].units == pytest.approx([2 * 4 * 2 * 8**3 / 1e9] * 3)
    assert all(seconds > 0 for seconds in found.entries[0].seconds) and found.entries[0].peak > 2**20
    assert found.left_out["absent"] == "not installed" and "Error" in found.left_out["broken, out of the box"]


class Tired:
    """Works twice, and no more."""

    left = 2

    def __call__(self) -> float:
        self.left -= 1
        if self.left < 0:
            raise MemoryError("no memory left\nin the third turn")
        return 1.0


def tired(setting) -> Tired:
    return Tired()


@pytest.mark.slow
def test_a_peer_that_fails_in_its_turn_is_left_out_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(harness, "LIMITS", [])
    contenders = [contender("ours", 8, ours=True), Contender(name="peer", make=tired)]
    config = DuelConfig(rounds=4, steps=1, warmup=0, pause=0.0, settings=["plain"])
    found = duel("A duel", "GFLOP", contenders, config, flops=False)
    assert [(entry.name, len(entry.units)) for entry in found.entries] == [("ours", 4)]
    assert found.left_out == {"peer, out of the box": "MemoryError: no memory left"}
    with pytest.raises(Failed, match="peer, out of the box: MemoryError"):
        duel("A duel", "GFLOP", [replace(contenders[1], ours=True)], config, flops=False)


@pytest.mark.slow
def test_a_failure_of_our_own_is_no_result(monkeypatch):
    monkeypatch.setattr(harness, "LIMITS", [])
    with pytest.raises(Failed, match="Error"):
        duel("A duel", "GFLOP", [contender("ours", "no size", ours=True)], DuelConfig(warmup=0))


class Tenant:
    """A worker that only says how much memory it holds, one byte."""

    def __init__(self, contender, **settings):
        self.contender, self.entry = contender, Entry(name=contender.name, setting="plain", league=contender.league)

    def __enter__(self):
        return self

    def __exit__(self, *details):
        pass

    def demand(self, command):
        return 1


@pytest.mark.parametrize(
    ("budget", "sittings"), [(4, ["AAA", "BBB"]), (6, ["AAABBB"]), (2, ["AA", "A", "BB", "B"]), (0, list("AAABBB"))]
)
def test_a_sitting_holds_whole_leagues_where_they_fit(monkeypatch, budget, sittings):
    monkeypatch.setattr(harness, "LIMITS", [])
    monkeypatch.setattr(harness, "Worker", Tenant)
    waiting = [contender("x", 8, league=league) for league in "AAABBB"]
    found = []
    while waiting:
        with ExitStack() as stack:
            workers = harness.seated(waiting, stack, DuelConfig(), budget, Result(title="", unit=""))
            found.append("".join(worker.contender.league for worker in workers))
    assert found == sittings


def test_rounds_are_at_least_one():
    with pytest.raises(ValueError, match="--duel.rounds 0"):
        DuelConfig(rounds=0)


def test_rates_are_medians_and_ratios_are_to_the_fastest_peers(result):
    rows = {(row[0], row[1]): row for row in tables.sheet(result).rows}
    assert rows["ours", "out of the box"][2:7] == ["3", "2 to 4", "1.50", "1.50", "10%"]
    assert rows["slow peer", "out of the box"][4] == "0.50"
    assert rows["ours", "our knobs, bf16"][4:7] == ["", "4.50", "30%"]


def test_what_is_kept_is_read_back(result, tmp_path):
    result.entries[0].output = object()
    result.save(tmp_path / "a" / "duel.json")
    result.entries[0].output = None
    assert Result.load(tmp_path / "a" / "duel.json") == result
    assert "output" not in json.loads((tmp_path / "a" / "duel.json").read_text())["entries"][0]


def test_only_the_section_of_the_page_is_written(result, tmp_path):
    page, folder = tmp_path / "RESULTS.md", str(tmp_path / "results")
    page.write_text(f"# Results\n\nbefore\n\n{tables.BEGIN}\nold\n{tables.END}\n\nafter\n")
    tables.publish(replace(result, title="B"), folder, "b")
    tables.publish(replace(result, title="A"), folder, "a")
    tables.write_section(folder, page)
    text = page.read_text()
    assert text.startswith(f"# Results\n\nbefore\n\n{tables.BEGIN}\n") and text.endswith(f"{tables.END}\n\nafter\n")
    assert "old" not in text and text.index("### A") < text.index("### B")
    tables.write_section(folder, page)
    assert page.read_text() == text


def test_a_page_without_marks_is_left_alone(tmp_path):
    page = tmp_path / "RESULTS.md"
    page.write_text("# Results\n")
    with pytest.raises(ValueError, match="speed: begin"):
        tables.write_section(str(tmp_path), page)


def test_the_command_names_no_folder_of_this_machine(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", "--run", "/home/somebody/runs/a", "--beams", "[5]"])
    assert command().endswith("--run PATH/a --beams '[5]'")
