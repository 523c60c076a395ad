from collections.abc import Iterator

from tasks import progress
from tasks.progress import shown


def three() -> Iterator[int]:
    yield from (1, 2, 3)


def test_items_pass_and_only_long_work_of_the_first_process_is_shown(capsys, monkeypatch):
    assert list(shown(three(), "lines", total=30, size=10)) == [1, 2, 3]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    assert list(shown(three(), "lines", total=30, size=10)) == [1, 2, 3]
    assert "lines" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert list(shown(three(), "lines", total=30, size=10)) == [1, 2, 3]
    assert capsys.readouterr().err == ""
