"""Files that are written whole, or not at all."""

import pytest

from tasks.errors import InputError
from tasks.writing import whole


def test_a_file_takes_its_name_once_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a.txt", "new")]


def test_where_the_disk_refuses_nothing_half_written_stays(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(InputError, match=f"{path} cannot be written: No space left on device"), whole(path) as aside:
        aside.write_text("half")
        with open("/dev/full", "w") as full:
            full.write("more")
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        with whole(tmp_path / "nothing" / "a.txt") as aside:
            aside.write_text("new")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a.txt", "old")]
