"""What inspect_model says of a model, beside what PyTorch counts when the same model really runs."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from recipes import inspect_model
from recipes.config import launch, read
from recipes.inspection import survey as counting
from recipes.inspection.flops import evaluation, flop_counter, update
from recipes.inspection.layers import Layer, OutputShapes, layers
from recipes.inspection.memory import as_trained, inference, largest_batch, training
from recipes.inspection.subject import Subject, read_subject
from tasks.errors import InputError
from tasks.text_recognition.model import Reader
from transformer_core.windows import region_mask

TRANSLATION = """
    --data.vocabulary.size 1200 --model.block.dim 96 --model.block.num_heads 4 --model.block.hidden_dim 384
    --model.encoder_depth 3 --model.decoder_depth 2 --model.block.dropout 0
""".split()
VIT = """
    --model.vit.depth 4 --model.vit.patch_size [8,8] --model.image_size [56,64] --model.block.dim 96
    --model.block.num_heads 4 --model.block.hidden_dim 384
""".split()
SWIN = """
    --model.kind swin --model.swin.depths [2,2] --model.image_size [96,96] --model.swin.window [6,6]
    --model.block.position relative --model.block.dim 48 --model.block.num_heads 3 --model.block.hidden_dim 192
""".split()
RECURRENT = """
    --model.kind recurrent --model.recurrent.dim 96 --model.recurrent.dropout 0 --model.block.dim 96
    --data.vocabulary.size 1200 --model.recurrent.depth 2
""".split()
RECOGNITION = """
    --data.longest 20 --data.size [32,128] --model.patch_size [32,4] --model.block.dim 96 --model.block.num_heads 4
    --model.block.hidden_dim 384 --model.encoder_depth 3 --model.decoder_depth 2 --model.block.dropout 0
""".split()
MODELS = pytest.mark.parametrize(
    "settings", [TRANSLATION, VIT, SWIN, RECOGNITION], ids=["translation", "vit", "swin", "recognition"]
)


def subject(settings: list[str], *more: str, length: int = 29) -> Subject:
    return read_subject([], [*settings, *more], length=length, classes=37, characters=90)


def rows(given: Subject, examples: int) -> list[Layer]:
    shapes = OutputShapes(given.model)
    with shapes:
        evaluation(given, examples, "cuda")
    return layers(given, {**shapes.found, **given.logits(examples)}, depth=3)


def counted(run) -> int:
    with flop_counter() as counter:
        run()
    return counter.get_total_flops()


@MODELS
def test_flops_are_those_of_a_real_run_and_of_the_formula(settings):
    given = subject(settings)
    model, batch = given.task.build(), given.batch(5)
    with torch.no_grad():
        real = counted(lambda: given.forward(model.eval(), batch))
    found, _ = evaluation(given, 5, "cpu")
    assert found.total == pytest.approx(real, rel=0.02)
    assert given.closed_form(5)[1] == pytest.approx(found, rel=0.02)
    real = counted(lambda: given.task.loss(model.train(), batch).total.backward())
    step, _ = update(given, 5, "cpu", recompute=False)
    assert step.total == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("context", ["initial", "every_step", "attention"])
def test_recurrent_models_are_counted_as_they_run(cell, context, monkeypatch):
    given = subject(RECURRENT, "--model.recurrent.cell", cell, "--model.recurrent.context", context)
    model, batch = given.task.build(), given.batch(16)
    (forward, _), (step, memory) = evaluation(given, 16, "cpu"), update(given, 16, "cpu", recompute=False)
    with monkeypatch.context() as patched:
        patched.setattr(torch.backends.mkldnn, "enabled", False)  # an LSTM is then made of products that PyTorch counts
        with torch.no_grad():
            real = counted(lambda: given.forward(model.eval(), batch))
        assert forward.total == pytest.approx(real, rel=0.02)
        real = counted(lambda: given.task.loss(model.train(), batch).total.backward())
        assert step.total == pytest.approx(real, rel=0.02)
    if cell == "lstm":
        return  # oneDNN keeps what it needs of an LSTM in a workspace, of a size that it does not tell
    model.zero_grad()
    own = memory.peak - memory.weights - memory.optimizer
    assert own == pytest.approx(allocated_peak(lambda: given.task.loss(model, batch).total.backward()), rel=0.15)


def test_a_training_step_takes_three_forward_passes_and_a_fourth_where_blocks_are_recomputed():
    given = subject(TRANSLATION)
    forward, _ = evaluation(given, 7, "cuda")
    (step, _), (longer, _) = (update(given, 7, "cuda", recompute=recompute) for recompute in (False, True))
    # Fused attention computes its scores once more backward: 2 products forward, 5 backward.
    assert step.linear == pytest.approx(3 * forward.linear, rel=0.02)
    assert step.logits == pytest.approx(3 * forward.logits, rel=0.02)
    assert step.attention == pytest.approx(3.5 * forward.attention, rel=0.02)
    # A fourth pass, but for keys and values of the memory, which are projected outside the blocks, and for the last
    # product of each block, which nothing waits for.
    left_out = (2 * 2 + 5 * 4) / (3 * 12 + 2 * 16)  # of 2 h^2 a token: 12 h^2 in an encoder, 16 h^2 in a decoder block
    assert longer.linear == pytest.approx((4 - left_out) * forward.linear, rel=0.01)


@pytest.mark.parametrize(
    ("name", "published"),
    # Vaswani et al. (2017), table 3: 65 and 213 million, of some 37,000 pieces; the numbers of images are timm's.
    [("base", 65e6), ("big", 213e6), ("vit_base", 86_567_656), ("vit_huge", 632_045_800), ("swin_tiny", 28_288_354)],
)
def test_parameters_are_those_of_the_formula_and_published(name, published):
    flags = ["--data.vocabulary.size", "37000"] if name in ("base", "big") else []
    given = read_subject([inspect_model.find(name)], flags, length=8, classes=1000, characters=90)
    number = sum(layer.parameters for layer in rows(given, 1))
    assert number == given.closed_form(1)[0]
    assert number == pytest.approx(published, rel=1e-9 if isinstance(published, int) else 0.04)


@MODELS
@pytest.mark.parametrize(("precision", "recompute"), [("fp32", False), ("fp32", True), ("bf16", False)])
def test_peak_in_training_is_what_the_allocator_saw(settings, precision, recompute):
    given, examples = subject(settings, "--train.accumulate", "2"), 64
    model, batch = as_trained(given, given.task.build(), recompute=recompute), given.batch(examples)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            total = given.task.loss(model, batch).total
        total.backward()

    found = training(given, examples, "cpu", precision, recompute=recompute)
    own = found.peak - found.weights - found.optimizer - found.gradients
    assert own > 8 * 2**20
    assert own == pytest.approx(allocated_peak(step), rel=0.15)
    assert found.gradients == sum(weight.nbytes for weight in model.parameters())
    assert found.optimizer == 2 * found.gradients


@MODELS
def test_peak_at_inference_is_what_the_allocator_saw(settings):
    given = subject(settings)
    model, batch = given.task.build().eval(), given.batch(64)
    with torch.no_grad():
        real = allocated_peak(lambda: given.forward(model, batch))
    found = inference(given, 64, "cpu", "fp32")
    assert found.peak - found.weights == pytest.approx(real, rel=0.15)


def allocated_peak(run) -> int:
    """Bytes that PyTorch's allocator for CPUs held at one time, by its profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@MODELS
def test_peak_on_a_gpu_is_what_its_allocator_saw(settings, precision):
    given, examples = subject(settings), 1024
    model = as_trained(given, given.task.build().cuda())
    batch = given.batch(examples)
    batch = batch._replace(**{k: v.cuda() for k, v in batch._asdict().items() if isinstance(v, torch.Tensor)})
    torch.cuda.reset_peak_memory_stats()
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        total = given.task.loss(model, batch).total
    total.backward()
    found = training(given, examples, "cuda", precision, recompute=False)
    assert found.peak - found.optimizer == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)


def test_what_else_is_watched_changes_no_memory():
    given = subject(VIT)
    assert evaluation(given, 4, "cuda")[1] == inference(given, 4, "cuda", "fp32")
    for again in (False, True):
        assert update(given, 4, "cuda", recompute=again)[1] == training(given, 4, "cuda", "fp32", recompute=again)


def test_forks_count_what_one_process_counts(monkeypatch):
    given, found = subject(RECOGNITION), []
    for workers in (3, 1):
        monkeypatch.setattr(counting, "default_workers", partial(int, workers))
        found.append(counting.survey(given, 4, "cuda"))
    assert found[0] == found[1] and tuple(found[0].memory) == counting.KINDS
    assert found[0].memory["bf16", True] == training(given, 4, "cuda", "bf16", recompute=True)
    assert found[0].memory["fp32", None] == inference(given, 4, "cuda", "fp32")


def test_the_devices_differ_where_their_kernels_do():
    given = subject(TRANSLATION, "--model.block.attention_dropout", "0.1", length=256)
    cpu, cuda = (training(given, 8, device, "fp32", recompute=False) for device in ("cpu", "cuda"))
    weights = 8 * 4 * 256 * 256  # examples, heads, queries, keys: what products keep and a fused kernel does not
    assert cpu.activations - cuda.activations > (3 + 2 + 2) * weights * 4


def test_bfloat16_keeps_weights_in_float32_and_copies_of_the_matrices():
    given = subject(VIT)
    wide, narrow = (training(given, 16, "cuda", precision, recompute=False) for precision in ("fp32", "bf16"))
    assert narrow.weights == wide.weights and narrow.gradients == wide.gradients and wide.copies == 0
    # Those of blocks and head; that of the patches is not waited for, because images have no gradient.
    weights = given.task.build().named_parameters()
    matrices = [weight for name, weight in weights if weight.dim() > 1 and name.startswith(("encoder", "head"))]
    assert narrow.copies == 2 * sum(weight.numel() for weight in matrices)
    assert narrow.activations < 0.75 * wide.activations


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_recomputed_blocks_keep_their_input_alone(device):
    given = subject(VIT, "--model.vit.depth", "12")
    kept = training(given, 16, device, "fp32", recompute=True).activations
    tokens = 16 * 57 * 96 * 4  # bytes of the input of a block
    patches = 16 * 56 * 3 * 64 * 4
    assert kept == pytest.approx(12 * tokens + patches, rel=0.03)


@pytest.mark.parametrize("fixed", [0, 1000, 999_950])
def test_the_largest_batch_fits_and_one_more_does_not(fixed):
    def peak(examples: int) -> int:
        return max(500_000, fixed + 37 * examples + examples // 16 * 11)

    found = largest_batch(1_000_000, peak, 3)
    assert peak(found) <= 1_000_000 < peak(found + 1)
    assert largest_batch(499_999, peak, 3) == 0


def test_the_table_shows_each_layer_with_its_output_and_counts_tied_weights_once():
    found = {layer.name: layer for layer in rows(subject(TRANSLATION), 5)}
    assert found["encoder.blocks.2"].shape == found["decoder.blocks.1"].shape == (5, 29, 96)
    assert found["encoder.blocks.0"].parameters == 12 * 96 * 96 + 13 * 96
    assert found["target_embedding.tokens"].parameters == 1200 * 96
    assert (found["output"].parameters, found["output"].shared) == (0, True)
    assert found["output"].shape == (5 * 29, 1200)
    vit = {layer.name: layer for layer in rows(subject(VIT), 5)}
    assert vit["encoder.blocks.2"].shape == (5, 57, 96)
    assert vit["encoder.blocks.3"].shape == (5, 1, 96)


def test_a_dry_run_leaves_nothing_behind():
    attention = F.scaled_dot_product_attention
    training(subject(SWIN), 2, "cuda", "bf16", recompute=False)
    assert F.scaled_dot_product_attention is attention
    assert region_mask.cache_info().currsize == 0


def test_the_program_prints_all_and_takes_settings_of_the_recipe(capsys, tmp_path):
    corpus = tmp_path / "corpus.yaml"
    corpus.write_text("data: {vocabulary: {size: 500}, tokens: 600}\ntrain: {steps: 3600, accumulate: 2}\n")
    own, settings = inspect_model.split(
        f"--recipe tiny,{corpus} --length 30 --memory_gb 0.1 --model.encoder_depth 2 --throughput 1200".split()
    )
    launch(inspect_model.Recipe, lambda recipe: inspect_model.main(recipe, settings), [*own, "--examples", "1440"])
    shown = capsys.readouterr().out
    assert "encoder.blocks.1" in shown and "encoder.blocks.2" not in shown and "decoder.blocks.3" in shown
    assert "3,600 updates of 1,200 tokens" in shown
    assert "at 1,200 tokens a second: 1.0 hours" in shown
    assert "100.0 epochs of 1,440 sentence pairs" in shown
    assert "largest micro-batch in 0.1 GB" in shown


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("base", "--model.block.num_kv_heads 1"),
        ("base", "--model.block.norm rms"),
        ("base", "--model.block.position relative"),
        ("vit_base", "--model.block.layer_scale 0.1"),
        ("vit_base", "--model.block.qk_norm true"),
        ("vit_base", "--model.vit.pool attention"),
        ("swin_tiny", "--model.block.score bilinear"),
        ("recognition", "--model.block.score gaussian"),
    ],
)
def test_blocks_that_the_formulas_do_not_know_have_none(name, flags):
    sizes = {"length": 8, "classes": 10, "characters": 90}
    assert read_subject([inspect_model.find(name)], [], **sizes).closed_form is not None
    assert read_subject([inspect_model.find(name)], flags.split(), **sizes).closed_form is None


def test_a_reader_of_text_is_known_by_its_own_settings_and_counted_like_the_real_one():
    given = read_subject([inspect_model.find("recognition")], [], length=8, classes=10, characters=90)
    assert given.task.unit == "characters" and given.units == 25
    number = sum(layer.parameters for layer in rows(given, 1))
    assert number == given.closed_form(1)[0]
    real = Reader(given.task.model, 90, channels=1, size=(32, 256))
    assert number == sum(weight.numel() for weight in real.parameters())


def test_an_unknown_recipe_is_one_line_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as left:
        launch(inspect_model.Recipe, inspect_model.main, ["--recipe", "wmt14_en_de_bag"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "wmt14_en_de_big" in said and "wmt14_en_de_base" in said


def test_a_recipe_of_no_program_is_refused(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("train: {steps: 10}\n")
    with pytest.raises(InputError, match="train_translation or train_images"):
        read_subject([path], [], length=8, classes=10, characters=90)
    with pytest.raises(InputError, match="choose 1 or more"):
        read(inspect_model.Recipe, ["--recipe", "big", "--length", "0"])


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("presets/*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_known(path):
    assert read_subject([path], [], length=8, classes=10, characters=90).task.unit in ("tokens", "images")
