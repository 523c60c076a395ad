from dataclasses import replace

import pytest
import torch

from benchmarks import gpu
from benchmarks.peers import images
from benchmarks.result import Result
from recipes.config import launch

TINY = images.ImageWork(32, 8, depth=1, dim=48, num_heads=3, hidden_dim=96, batch=2, classes=10)


def test_without_a_gpu_the_program_says_what_to_run(capfd, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        launch(gpu.Recipe, gpu.main, ["--shapes=[vit_s]"])
    assert stopped.value.code == 2 and "training_images" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_each_shape_gets_a_table_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")  # in the processes that train
    monkeypatch.setattr(gpu, "NEEDS", {"transformer_core": "", "timm": "timm"})
    monkeypatch.setattr(gpu, "IMAGES", {"vit_s": TINY})
    monkeypatch.setattr(gpu, "GPU_LIMIT", replace(gpu.GPU_LIMIT, arguments=(64,)))
    given = ["--shapes=[vit_s]", "--duel.rounds=2", "--duel.warmup=1", "--duel.steps=2", f"--duel.out={tmp_path}"]
    launch(gpu.Recipe, gpu.main, given)
    result = Result.load(tmp_path / "gpu_vit_s.json")
    assert [(entry.name, entry.league) for entry in result.entries] == [
        ("transformer_core", "eager"),
        ("timm", "eager"),
        ("transformer_core", "compiled"),
        ("timm", "compiled"),
    ]
    assert result.machine["gpu"] == "a GPU" and result.flops > 0
    assert all(entry.units == [4, 4] for entry in result.entries)
    assert result.limits[0].rate > 0
