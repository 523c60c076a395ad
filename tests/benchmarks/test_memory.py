import pytest

from benchmarks import memory
from benchmarks.memory import GB, RECOMPUTE, Recipe
from benchmarks.worker import Failed
from recipes.config import read
from tasks.errors import InputError


def test_the_line_through_two_batches_says_what_fits_and_that_is_run(monkeypatch):
    asked = []

    def peak(recipe, name, size):
        asked.append(size)
        return 100 * 2**20 + size * 3 * 2**20

    monkeypatch.setattr(memory, "peak", peak)
    found = memory.fit(Recipe(memory_gb=1.0), "timm")
    assert (found.each, found.fixed) == (3 * 2**20, 100 * 2**20)
    assert found.largest == (1024 - 100) // 3 and found.peak <= GB < peak(None, "", found.largest + 1)
    assert asked[:3] == [*memory.SIZES["images"], found.largest]
    assert memory.fit(Recipe(memory_gb=0.05), "timm").largest == 0


def test_where_memory_grows_faster_than_the_line_less_is_run_until_it_fits(monkeypatch):
    asked = []

    def peak(recipe, name, size):
        asked.append(size)
        return 2**20 * (100 + 2 * size + size**2 // 100)

    monkeypatch.setattr(memory, "peak", peak)
    found = memory.fit(Recipe(memory_gb=1.0), "timm")
    assert 0.95 * GB < found.peak <= GB and found.peak == peak(None, "", found.largest)
    assert 3 < len(asked) < 8


def test_where_memory_grows_slower_than_the_line_more_is_run_until_it_is_full(monkeypatch):
    monkeypatch.setattr(memory, "peak", lambda recipe, name, size: 2**20 * (100 + 10 * min(size, 12) + 5 * size))
    found = memory.fit(Recipe(memory_gb=1.0), "timm")
    assert 0.95 * GB < found.peak <= GB


def test_where_memory_grows_in_jumps_the_largest_that_fits_is_found(monkeypatch):
    asked = []

    def peak(recipe, name, size):
        asked.append(size)
        return 2**20 * (2 * size + 20_000 * (size >= 170))

    monkeypatch.setattr(memory, "peak", peak)
    found = memory.fit(Recipe(memory_gb=0.65), "timm")
    assert found.largest == 169 and found.peak == 338 * 2**20
    assert len(asked) < 14


def test_one_more_than_the_larger_of_two_small_batches_may_be_too_many(monkeypatch):
    monkeypatch.setattr(memory, "peak", lambda recipe, name, size: 75 * size * 2**20)
    assert memory.fit(Recipe(memory_gb=0.93), "timm").largest == 12


@pytest.mark.slow
def test_recomputed_blocks_take_less_memory_and_as_much_each_time():
    size = memory.SIZES["images"].small
    plain, again, once_more = (
        memory.peak(Recipe(), f"transformer_core{kind}", size) for kind in ("", RECOMPUTE, RECOMPUTE)
    )
    assert again < plain - 2**25
    assert abs(once_more - again) < 2**22


def test_who_is_missing_is_told_and_left_out(monkeypatch, tmp_path):
    def fit(recipe, name):
        if name == "timm":
            raise Failed("ModuleNotFoundError: No module named 'timm'\nTraceback …")
        return memory.Fit(name, 2**20, 2**28, 700 if RECOMPUTE in name else 500, 2**29)

    monkeypatch.setattr(memory, "fit", fit)
    memory.main(Recipe(out=str(tmp_path)))
    lines = (tmp_path / "memory_images.md").read_text().splitlines()
    assert lines[4].startswith("| transformer_core, recompute | 1.00 | 256 | 700 | 512 |")
    assert "Left out: timm (ModuleNotFoundError: No module named 'timm')." in lines


def test_no_memory_is_refused():
    with pytest.raises(InputError, match="--memory_gb 0.0: give some memory"):
        read(Recipe, ["--memory_gb", "0"])
