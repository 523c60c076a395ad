import hashlib
import json
import logging
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from recipes.checkpoint import check_writable, clean, load, newest, prune, save, verify
from tasks.errors import InputError

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"a.weight": torch.randn(7, 5, generator=generator), "a.bias": torch.randn(7, generator=generator)},
        "optimizer": {"state.0.exp_avg": torch.randn(7, 5, generator=generator), "state.0.step": torch.tensor(3.0)},
    }


def saved(folder: Path, *steps: int) -> list[Path]:
    return [save(folder, step, tensors(step), {"step": step, "best": 41.5}) for step in steps]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_holds(path: Path, step: int) -> None:
    checkpoint = load(path)
    assert checkpoint.state == {"step": step, "best": 41.5}
    assert_close(checkpoint.tensors, tensors(step), rtol=0, atol=0)


def test_a_checkpoint_holds_what_was_saved(tmp_path):
    (path,) = saved(tmp_path / "run" / "checkpoints", 123)
    assert path.name == "step-00000123" and names(path) == FILES and names(path.parent) == [path.name]
    assert verify(path) == []
    assert_holds(path, 123)


def test_others_can_read_and_check_the_files(tmp_path):
    (path,) = saved(tmp_path, 5)
    assert_close(load_file(path / "model.safetensors"), tensors(5)["model"])
    listed = json.loads((path / "manifest.json").read_text())["files"]
    for name, entry in listed.items():
        content = (path / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 2)])
def test_every_type_and_shape_comes_back_bit_for_bit(tmp_path, dtype, shape):
    tensor = torch.randn(shape).to(dtype)
    back = load(save(tmp_path, 1, {"model": {"x": tensor}}, {})).tensors["model"]["x"]
    assert back.dtype == dtype and back.shape == shape and torch.equal(back, tensor)


def test_shared_memory_is_stored_once_and_shared_again(tmp_path):
    table, wide = torch.randn(1000, 3), torch.randn(4, 6)
    given = {"source": table, "target": table, "turned": table.T, "left": wide[:, :3], "top": wide[:2], "low": wide[2:]}
    path = save(tmp_path, 1, {"model": given}, {})
    back = load(path).tensors["model"]
    assert_close(back, given, rtol=0, atol=0)
    assert back["source"].data_ptr() == back["target"].data_ptr()
    assert (path / "model.safetensors").stat().st_size < 3 * table.nbytes


def test_a_square_matrix_and_its_transpose_are_two_tensors(tmp_path):
    matrix = torch.randn(3, 3)
    given = {"there": matrix, "back": matrix.T}
    assert_close(load(save(tmp_path, 1, {"model": given}, {})).tensors["model"], given, rtol=0, atol=0)


def test_what_is_loaded_may_be_changed_without_changing_the_file(tmp_path):
    (path,) = saved(tmp_path, 1)
    load(path).tensors["model"]["a.weight"].mul_(2).add_(1)
    assert_holds(path, 1)


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        (path,) = saved(tmp_path, 1)
    finally:
        os.umask(before)
    assert {(path / name).stat().st_mode & 0o777 for name in FILES} == {0o640}
    assert path.stat().st_mode & 0o777 == 0o750


def test_saving_a_step_again_leaves_it_as_it_is(tmp_path):
    tied = {"model": dict.fromkeys("abcdefgh", torch.ones(3))}
    path = save(tmp_path, 4, tied, {"best": 1})
    before = (path / "state.json").stat().st_ino
    assert save(tmp_path, 4, tied, {"best": 2}) == path and names(tmp_path) == [path.name]
    assert (path / "state.json").stat().st_ino == before


def test_another_model_of_the_same_step_is_refused(tmp_path):
    (path,) = saved(tmp_path, 4)
    with pytest.raises(InputError, match="step-00000004 holds other tensors of the same step: move it away"):
        save(tmp_path, 4, tensors(5), {})
    assert names(tmp_path) == [path.name]
    assert_holds(path, 4)


def test_saving_over_a_bad_checkpoint_sets_it_aside(tmp_path, caplog):
    (path,) = saved(tmp_path, 4)
    os.truncate(path / "model.safetensors", 9)
    saved(tmp_path, 4)
    assert_holds(path, 4)
    assert "is set aside: model.safetensors has 9 bytes" in caplog.text


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", ["0", "1", "half", "all but one"])
def test_a_truncated_file_is_named_and_the_checkpoint_before_is_used(tmp_path, caplog, name, part):
    older, newer = saved(tmp_path, 1, 2)
    size = (newer / name).stat().st_size
    os.truncate(newer / name, {"0": 0, "1": 1, "half": size // 2, "all but one": size - 1}[part])
    assert [reason.partition(" ")[0] for reason in verify(newer)] == [name]
    with pytest.raises(InputError, match=name):
        load(newer)
    with caplog.at_level(logging.WARNING):
        assert newest(tmp_path) == older
    assert "step-00000002" in caplog.text and name in caplog.text and len(caplog.records) == 1
    assert [entry[:18] for entry in names(tmp_path)] == [".bad-step-00000002", "step-00000001"]
    saved(tmp_path, 2)
    assert newest(tmp_path) == newer


def test_each_of_200_flipped_bits_is_found_and_its_file_named(tmp_path):
    (path,) = saved(tmp_path, 1)
    choose = random.Random(1)
    found = 0
    for count in range(200):
        file = path / FILES[count % len(FILES)]
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
        file.write_bytes(flipped)
        reasons = verify(path)
        # A flip in the manifest may read as a wrong size or digest of the file that it is about.
        found += bool(reasons) and (file.name == "manifest.json" or file.name in " ".join(reasons))
        file.write_bytes(content)
    assert found == 200 and verify(path) == []


def test_a_flipped_bit_in_any_byte_of_the_manifest_is_found(tmp_path):
    (path,) = saved(tmp_path, 1)
    file = path / "manifest.json"
    content = file.read_bytes()
    choose = random.Random(1)
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << choose.randrange(8)
        file.write_bytes(flipped)
        assert verify(path), position


@pytest.mark.parametrize("name", FILES)
def test_a_deleted_file_is_named(tmp_path, name):
    older, newer = saved(tmp_path, 1, 2)
    (newer / name).unlink()
    assert verify(newer) == [f"{name} is missing"]
    assert newest(tmp_path) == older


def test_a_manifest_of_another_step_is_refused(tmp_path):
    first, second = saved(tmp_path, 1, 2)
    shutil.copy(first / "manifest.json", second)
    assert len(verify(second)) == 4 and "manifest.json is that of step 1" in verify(second)


def test_a_renamed_checkpoint_is_refused(tmp_path):
    (path,) = saved(tmp_path, 1)
    assert verify(path.rename(tmp_path / "step-00000009")) == ["manifest.json is that of step 1"]


def test_a_file_that_does_not_belong_is_refused(tmp_path):
    (path,) = saved(tmp_path, 1)
    (path / "model.pt").write_bytes(b"x")
    (path / "more").mkdir()
    assert verify(path) == [f"{name} does not belong to a checkpoint" for name in ("model.pt", "more")]


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("name", [*FILES, "extra.safetensors"])
@pytest.mark.parametrize("manifest_fits", [False, True])
def test_a_pickle_is_never_opened(tmp_path, name, manifest_fits):
    marker = tmp_path / "ran"
    (path,) = saved(tmp_path / "checkpoints", 1)
    (path / name).write_bytes(pickle.dumps(Payload(marker)))
    if manifest_fits and name != "manifest.json":
        manifest = json.loads((path / "manifest.json").read_text())
        summed = subprocess.run(["sha256sum", path / name], capture_output=True, text=True, check=True).stdout.split()[
            0
        ]
        manifest["files"][name] = {"bytes": (path / name).stat().st_size, "sha256": summed}
        (path / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    with pytest.raises(InputError, match=name):
        load(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()


def test_where_all_are_bad_each_reason_is_told_and_nothing_is_started_afresh(tmp_path):
    first, second = saved(tmp_path, 1, 2)
    (first / "model.safetensors").unlink()
    os.truncate(second / "state.json", 3)
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            newest(tmp_path)
        message = str(caught.value)
        assert "step-00000001: model.safetensors is missing" in message
        assert "step-00000002: state.json has 3 bytes instead of" in message and "\n" not in message
    assert names(tmp_path) == [first.name, second.name]


def test_one_that_was_set_aside_still_forbids_to_start_afresh(tmp_path):
    first, second = saved(tmp_path, 1, 2)
    (second / "state.json").unlink()
    newest(tmp_path)
    shutil.rmtree(first)
    with pytest.raises(InputError, match=r"\.bad-step-00000002"):
        newest(tmp_path)


def test_reading_only_renames_nothing(tmp_path, caplog):
    first, second = saved(tmp_path, 1, 2)
    (second / "state.json").unlink()
    assert newest(tmp_path, read_only=True) == first
    assert "state.json is missing" in caplog.text and names(tmp_path) == [first.name, second.name]


def test_nothing_was_saved(tmp_path):
    assert newest(tmp_path) is None and newest(tmp_path / "missing") is None


def test_a_path_that_holds_no_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match="step-00000007 cannot be used: there is no such folder"):
        load(tmp_path / "step-00000007")
    with pytest.raises(InputError, match="manifest.json is missing"):
        load(tmp_path)


def test_order_is_that_of_the_steps_and_foreign_names_do_not_matter(tmp_path):
    paths = saved(tmp_path, 100_000_000, 9, 10)
    for path, second in zip(paths, (5, 9, 1), strict=True):
        os.utime(path, (second, second))
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "step-12").mkdir()
    (tmp_path / "step-200000000").write_text("a file")
    (tmp_path / "step-300000000").symlink_to(paths[1])
    (tmp_path / "step-400000000").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".tmp-link").symlink_to(paths[1])
    clean(tmp_path)
    assert newest(tmp_path) == paths[0]
    prune(tmp_path, keep_last=1)
    assert newest(tmp_path) == paths[0] and not paths[1].exists() and not paths[2].exists()
    assert len(names(tmp_path)) == 7


def test_cleaning_takes_what_a_killed_process_left_and_nothing_else(tmp_path):
    for name in (".tmp-0a", ".trash-0b", ".bad-step-00000002-0c", "step-00000001"):
        (tmp_path / name).mkdir()
    clean(tmp_path)
    assert names(tmp_path) == [".bad-step-00000002-0c", "step-00000001"]


def test_a_link_to_a_checkpoint_can_be_loaded(tmp_path):
    (path,) = saved(tmp_path, 3)
    (tmp_path / "best").symlink_to(path.name)
    assert_holds(tmp_path / "best", 3)


@pytest.mark.parametrize(
    ("keep_last", "keep", "every", "kept"),
    [(2, (), 0, [6, 7]), (2, (3,), 0, [3, 6, 7]), (1, (7,), 3, [3, 6, 7]), (0, (), 0, [7]), (9, (), 0, range(1, 8))],
)
def test_pruning_keeps_exactly_the_last_the_named_and_every_nth(tmp_path, keep_last, keep, every, kept):
    paths = saved(tmp_path, *range(1, 8))
    prune(tmp_path, keep_last, [paths[step - 1] for step in keep], every)
    assert names(tmp_path) == [f"step-{step:08d}" for step in kept]
    for step in kept:
        assert_holds(paths[step - 1], step)


def test_nothing_is_pruned_for_a_newest_that_is_bad(tmp_path, caplog):
    paths = saved(tmp_path, 1, 2, 3)
    os.truncate(paths[2] / "model.safetensors", 5)
    prune(tmp_path, keep_last=1)
    assert all(path.exists() for path in paths) and "nothing is pruned, model.safetensors has 5 bytes" in caplog.text


def test_a_file_that_grows_too_large_stops_the_save_and_leaves_the_rest_alone(tmp_path):
    saved(tmp_path, 1)
    large = {"model": {"x": torch.zeros(250_000)}}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"step-00000002 cannot be saved: .*it needs 1,000,000 bytes"):
            save(tmp_path, 2, large, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step-00000001"]
    assert_holds(tmp_path / "step-00000001", 1)


@pytest.fixture
def disk(tmp_path):
    """A file system of one megabyte."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_stops_the_save_and_leaves_the_rest_alone(disk):
    saved(disk, 1)
    with pytest.raises(InputError, match=r"No space left on device.*it needs 4,000,000 bytes"):
        save(disk, 2, {"model": {"x": torch.zeros(1_000_000)}}, {})
    assert names(disk) == ["step-00000001"]
    assert_holds(disk / "step-00000001", 1)


def test_a_disk_that_is_read_only_is_named_before_any_work(disk):
    check_writable(disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(InputError, match="cannot be written to: Read-only file system; choose another folder"):
        check_writable(disk)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file/checkpoints cannot be written to: Not a directory"):
        check_writable(tmp_path / "file" / "checkpoints")
    check_writable(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []


# Saves step 3 beside steps 1 and 2 and prunes, killed before its k-th change to the disk, for every k.
SAVER = """
import json, os, signal, sys
from pathlib import Path
import torch
import recipes.checkpoint as checkpoint
from tests.recipes.test_checkpoint import saved

torch.set_num_threads(1)
root, point, events = Path(sys.argv[1]), 0, []

def counted(function):
    def call(*arguments, **options):
        if len(events) == point:
            os.kill(os.getpid(), signal.SIGKILL)
        events.append([function.__name__, Path(str(arguments[function.__name__ == "save_file"])).name])
        return function(*arguments, **options)
    return call

killed = []
while True:
    folder = root / f"{point:03d}"
    saved(folder, 1, 2)
    child = os.fork()
    if not child:
        for module, names in (os, ("mkdir", "fsync", "rename", "unlink", "rmdir")), (checkpoint, ("save_file",)):
            for name in names:
                setattr(module, name, counted(getattr(module, name)))
        saved(folder, 3)
        checkpoint.prune(folder, keep_last=1)
        (root / "events.json").write_text(json.dumps(events))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        assert status == 0
        break
    killed.append(os.WTERMSIG(status))
    point += 1
print(json.dumps(killed))
"""


def test_a_kill_before_any_change_to_the_disk_leaves_a_whole_checkpoint(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SAVER, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    events = json.loads((tmp_path / "events.json").read_text())
    assert json.loads(done.stdout) == [9] * len(events)
    written = [name for kind, name in events if kind == "save_file"]
    assert written == ["model.safetensors", "optimizer.safetensors"]
    kinds = [kind for kind, _ in events]
    in_place, first_pruned, second_pruned = (index for index, kind in enumerate(kinds) if kind == "rename")
    assert kinds[:in_place].count("fsync") == 5 and kinds[second_pruned:].count("unlink") == 4
    for point in range(len(events)):
        folder = tmp_path / f"{point:03d}"
        clean(folder)
        left = [1] * (point <= first_pruned) + [2] * (point <= second_pruned) + [3] * (point > in_place)
        assert names(folder) == [f"step-{step:08d}" for step in left]
        for step in left:
            assert_holds(folder / f"step-{step:08d}", step)
        assert newest(folder) == folder / f"step-{left[-1]:08d}"
        saved(folder, 3, 4)
        prune(folder, keep_last=1)
        assert names(folder) == ["step-00000004"]
