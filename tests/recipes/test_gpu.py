"""What only a GPU can show: no waiting inside an update, and the kernel that attention takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from recipes import loop, train_images
from recipes.config import launch
from recipes.reverse import Recipe, Reverse, Strings
from recipes.runs import load
from recipes.train_config import TrainConfig
from tasks.translation.translator import Translator
from transformer_core import BlockConfig, Cosine, DotProduct, GaussianKernel, ScaledDotProduct, attention
from transformer_core.replay import Replay
from transformer_core.search import SearchConfig
from transformer_core.windows import WindowBias

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("as_in_a_new_process"),
]


@pytest.fixture
def updates(monkeypatch) -> list[object]:
    """Updates of a training loop; from the second on, one that waits for the device is an error."""
    whole, updates = loop.update, []

    def watched(*given):
        torch.cuda.set_sync_debug_mode("error" if updates else "default")  # the first sets up libraries
        try:
            whole(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        updates.append(given)

    monkeypatch.setattr(loop, "update", watched)
    return updates


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_an_update_never_waits_for_the_device(tmp_path, updates):
    config = TrainConfig(
        out=str(tmp_path / "run"), steps=6, warmup=2, precision="bf16", monitor="exact", tensorboard=False
    )
    strings = Strings(longest=6, train=40, valid=8, batch=8)
    block = BlockConfig(dim=32, num_heads=4, hidden_dim=64)
    loop.train(Reverse(strings, block, depth=1), config, Recipe(data=strings, block=block, train=config))
    assert len(updates) == 6


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_images_on_the_device_are_cut_without_waiting(tmp_path, updates):
    flags = "--train.steps 6 --train.warmup 2 --train.tensorboard false"
    arguments = [*flags.split(), "--expected.metric", "", "--train.out", str(tmp_path / "run")]
    launch(train_images.Recipe, train_images.main, arguments, config="embedded_digits.yaml")
    assert len(updates) == 6


@pytest.mark.parametrize("score", [ScaledDotProduct(), DotProduct(), Cosine(), GaussianKernel()])
@pytest.mark.parametrize("causal", [False, True])
def test_what_factors_takes_the_flash_kernel(score, causal):
    query, key, value = torch.randn(3, 2, 8, 128, 64, device="cuda", dtype=torch.bfloat16).unbind()
    score = score.to("cuda")
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where that kernel cannot be taken
        assert attention(query, key, value, score=score, causal=causal).shape == query.shape


def test_a_bias_of_windows_takes_a_fused_kernel_forward_and_backward():
    query, key, value = torch.randn(3, 64, 3, 49, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True).unbind()
    bias = WindowBias(3, (7, 7)).cuda()
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        attention(query, key, value, score=ScaledDotProduct(), bias=bias(49, 49)).sum().backward()
    assert bias.weight.grad is not None and bias.weight.grad.any()


def test_replayed_graphs_have_the_losses_of_a_plain_run(tmp_path):
    settings = "--config=recipes/embedded_digits.yaml --train.steps=6 --train.warmup=2 --train.log_every=1".split()
    settings += ["--train.tensorboard=false", "--expected.metric="]
    settings += ["--model.block.dropout=0", "--model.block.drop_path=0"]
    losses = []
    for name, flags in {
        "plain": [],
        "blocks": ["--train.compile=true"],
        "graphs": ["--train.compile=true", "--train.cuda_graphs=true"],
    }.items():
        folder = tmp_path / name
        # In a process of its own, because the checks of shapes that the tests put into the core cannot be compiled.
        command = [sys.executable, "-m", "recipes.train_images", *settings, f"--train.out={folder}", *flags]
        subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and losses[2] == pytest.approx(losses[0], rel=1e-3)


def test_a_replayed_function_runs_twice_and_follows_its_input():
    calls, total = [], torch.zeros(3, device="cuda")

    def function(given):
        calls.append(given)
        total.add_(given)
        return total * 2

    replay = Replay()
    found = [replay(function, torch.full((3,), float(step), device="cuda")).tolist() for step in range(1, 6)]
    assert found == [[2.0 * sum(range(step + 1))] * 3 for step in range(1, 6)] and len(calls) == 2
    replay.forget()
    assert replay(function, torch.ones(3, device="cuda")).tolist() == [32.0] * 3 and len(calls) == 3


def test_recordings_take_over_the_memory_of_those_before():
    held = []
    for _ in range(20):
        replay = Replay()
        for _ in range(3):
            replay(lambda given: (given @ given).relu() @ given, torch.ones(512, 512, device="cuda"))
        held.append(torch.cuda.memory_reserved())
    assert held[-1] == held[1]


@pytest.mark.parametrize("beams", [1, 4])
def test_a_gpu_translates_as_the_cpu_does(trained, beams):
    search = SearchConfig(beams=beams)
    fast, narrow = (load(trained.folder, search=search, precision=precision) for precision in ("fp32", "bf16"))
    assert fast.device.type == "cuda"
    sentences = trained.sentences() * 3
    plain = Translator([model.cpu() for model in load(trained.folder).models], fast.source, fast.target, search=search)
    expected = plain.n_best(sentences)
    found = fast.n_best(sentences)
    assert [each[0].text for each in found] == [each[0].text for each in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine[0].log_probability == pytest.approx(theirs[0].log_probability, abs=1e-3)
    same = [one == other[0].text for one, other in zip(narrow.translate(sentences), expected, strict=True)]
    assert sum(same) > 0.9 * len(same)
