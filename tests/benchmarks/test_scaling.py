from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import scaling
from benchmarks.scaling import CHANNELS, CLASSES, VOCABULARY, Cluster, Recipe
from recipes.config import launch, load_config
from tasks.image_classification.model import build_model
from tasks.translation.model import TranslationModel

ROOT = Path(__file__).parents[2]
RECIPE = Recipe()
SHAPES = {shape.name: shape for shape in scaling.shapes(RECIPE)}
NAMES = pytest.mark.parametrize("name", SHAPES)


def real(name):
    path = ROOT / "recipes" / "presets" / f"{name}.yaml"
    with torch.device("meta"):
        if name.startswith("vit"):
            return build_model(load_config(scaling.Images, path).model, CLASSES, channels=CHANNELS)
        return TranslationModel(load_config(scaling.Translation, path).model, VOCABULARY, VOCABULARY, pad_id=0)


@NAMES
def test_parameters_and_operations_are_those_of_the_real_model(name):
    model, shape, batch, length = real(name).eval(), SHAPES[name], 3, RECIPE.length
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    with FlopCounterMode(display=False) as counter:
        if name.startswith("vit"):
            model(torch.empty(batch, CHANNELS, 224, 224, device="meta"))
            expected = batch * shape.forward
        else:
            tokens = torch.zeros(batch, length, dtype=torch.long, device="meta")
            model(tokens, None, tokens, torch.arange(batch * length, device="meta"))
            # The model leaves its logits factored.
            expected = batch * length * (shape.forward - 2 * shape.block.dim * VOCABULARY)
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_a_ring_sends_what_the_formula_says(ranks):
    parts = [[float((rank + 1) * 10**part) for part in range(ranks)] for rank in range(ranks)]
    sent = [0] * ranks
    for step in range(2 * (ranks - 1)):
        moved = [(rank, (rank - step) % ranks, parts[rank][(rank - step) % ranks]) for rank in range(ranks)]
        for rank, part, value in moved:
            to, reducing = (rank + 1) % ranks, step < ranks - 1
            parts[to][part] = parts[to][part] + value if reducing else value
            sent[rank] += 1
    assert parts == [[sum(range(1, ranks + 1)) * 10.0**part for part in range(ranks)]] * ranks
    bytes_a_part, speed = 1e9, 47e9
    cluster = Cluster(node=1, adapters=1, start=0.0, ring=(0.0, 0.0), tree=(0.0, 0.0), shares=(1.0, 0.5))
    assert scaling.move(cluster, ranks * bytes_a_part, ranks, 2) == pytest.approx(sent[0] * bytes_a_part / speed)
    assert scaling.move(cluster, ranks * bytes_a_part, ranks, 1) == pytest.approx(sent[0] * bytes_a_part / speed / 2)


def test_the_slower_link_bounds_a_ring_and_many_gpus_take_the_tree():
    cluster = Cluster()
    assert scaling.move(cluster, 1e12, 8, 1) == pytest.approx(1e12 * 7 / 8 / 370e9 / 0.92, rel=1e-3)
    one = Cluster(adapters=1)
    assert scaling.move(one, 1e12, 16, 1) == pytest.approx(1e12 * 15 / 16 / 47e9 / 0.92, rel=1e-3)
    assert scaling.move(cluster, 0, 1024, 2) == pytest.approx((14 + 2 * (7 * 1.25 + 7 * 8.5)) * 1e-6)


@NAMES
def test_gradients_hide_from_the_stated_batch_on_and_cost_once_an_update(name):
    shape = SHAPES[name]
    last = scaling.reduction(RECIPE, shape, 128)[1] + scaling.move(RECIPE.cluster, 4, 128, 2)
    edge = scaling.hidden_from(RECIPE, shape, 128)

    def waiting(examples, micro=1_000_000):
        return scaling.waiting(RECIPE, shape._replace(micro=micro), 128, examples, "no")

    assert waiting(edge) == pytest.approx(last) == waiting(2 * edge)
    assert waiting(edge / 2) > 1.2 * last
    # A window of micro-batches hides as much as its last one.
    assert waiting(8 * shape.micro, shape.micro) == pytest.approx(waiting(shape.micro))
    sharded = [scaling.waiting(RECIPE, shape, 128, count * shape.micro, "all") for count in (1, 8)]
    assert sharded[1] > sharded[0]


@NAMES
def test_efficiency_falls_with_the_gpus_and_rises_with_the_network(name):
    shape, slow = SHAPES[name], Recipe(cluster=Cluster(adapters=1))
    for share in (scaling.weak, scaling.strong):
        values = [share(RECIPE, shape, gpus) for gpus in (1, *RECIPE.gpus)]
        assert values == sorted(values, reverse=True) and values[0] == 1.0 and values[-1] > 0
        assert share(slow, shape, 128) < share(RECIPE, shape, 128)
    free = Recipe(cluster=Cluster(start=0.0, ring=(0.0, 0.0), tree=(0.0, 0.0), nvlink=1e12, adapter=1e12, hbm=1e12))
    assert scaling.strong(free, shape, 1024) == pytest.approx(1.0)
    assert scaling.weak(free, shape, 1024, "all") == pytest.approx(1.0)


def test_memory_is_sixteen_bytes_a_parameter_sharded_or_not():
    shape = SHAPES["vit_base"]._replace(micro=0)
    assert scaling.memory(RECIPE, shape, 1, recompute=False) == 18 * shape.parameters
    sharded = scaling.memory(RECIPE, shape, 8, recompute=True)
    assert sharded == pytest.approx((2 + 4 / 13) * shape.parameters)


def rows(text):
    """Cells of all rows of tables, without the lines below their heads."""
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row for row in cells if not set("".join(row)) <= set("-:")]


def test_the_document_shows_what_the_program_prints_in_its_order(capsys):
    launch(Recipe, scaling.main, [])
    printed, written = rows(capsys.readouterr().out), (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert len(printed) == 9 * (1 + len(SHAPES))
    shown = iter(rows(written))
    assert [row for row in printed if row not in shown] == []


def test_settings_that_mean_nothing_are_refused(capsys):
    for arguments, message in (["--gpus", "[9]"], "whole nodes of 8"), (["--cluster.mfu", "0"], "more than 0"):
        with pytest.raises(SystemExit):
            launch(Recipe, scaling.main, arguments)
        assert message in capsys.readouterr().err
