import warnings
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from benchmarks import growth, training_text
from benchmarks.peers import attention, ctranslate, hugging_face, images, text
from recipes.config import read
from recipes.train_translation import Recipe
from tasks.translation.model import TranslationConfig, TranslationModel
from tasks.translation.task import collate
from tasks.translation.vocabulary import EOS, PAD
from transformer_core import BlockConfig
from transformer_core.packing import has_bfloat16

pytestmark = pytest.mark.filterwarnings("ignore")  # of the peers

TEXT = {
    "torch.nn": ("torch", text.torch_transformer),
    "transformers": ("transformers", text.transformers),
    "x-transformers": ("x_transformers", text.x_transformers),
    "JoeyNMT": ("joeynmt", text.joeynmt),
}
IMAGES = images.ImageWork(32, 8, depth=2, dim=96, num_heads=3, hidden_dim=160, batch=2, classes=10)


def installed(package):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(package)


def translation(order="post"):
    block = BlockConfig(dim=48, num_heads=3, hidden_dim=72, order=order, dropout=0.0)
    return TranslationConfig(block=block, encoder_depth=2, decoder_depth=1)


def parameters(optimizer):
    return sum(weight.numel() for group in optimizer.param_groups for weight in group["params"] if weight.requires_grad)


@pytest.mark.parametrize("setting", ["plain", "bf16"])
@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("peer", TEXT)
def test_a_training_step_of_a_translator_is_as_large_as_ours_and_lowers_the_loss(peer, order, setting):
    package, make = TEXT[peer]
    installed(package)
    pieces = [[([5, 6, 7], [8, 9]), ([5, 6], [11, 9, 10, 4])]]
    work = text.TextWork(replace(Recipe(), model=translation(order)), 13, pieces)
    mine, theirs = text.ours(setting, work), make(setting, work)
    assert parameters(theirs.optimizer) == pytest.approx(parameters(mine.optimizer), rel=0.04)
    batch = work.batches()[0]
    before = float(theirs.loss(batch))
    for _ in range(20):
        assert theirs() == mine() == 8  # target pieces and end marks
    assert float(theirs.loss(batch)) < before


def test_with_equal_weights_the_losses_are_equal():
    installed("transformers")
    recipe = replace(Recipe(), model=translation())
    work = text.TextWork(recipe, 13, [[([5, 6, 7], [8, 9]), ([5, 6], [11, 9, 10, 4])]])
    model = TranslationModel(recipe.model, 13, 13, pad_id=PAD)
    copy = hugging_face.trained_model(model, recipe.model, 20)
    batch = work.batches()[0]
    out = copy(input_ids=batch.source, attention_mask=text.source_mask(batch), decoder_input_ids=batch.target)
    mine = torch.nn.functional.cross_entropy(logits(model, batch), batch.labels, label_smoothing=0.1, reduction="sum")
    assert_close(work.loss_of(out.logits, batch), mine)


def logits(model, batch):
    states, weight = model(batch.source, batch.mask, batch.target, batch.positions)
    return states @ weight.T


@pytest.mark.parametrize("order", ["post", "pre"])
def test_our_weights_give_the_same_probabilities_in_ctranslate2(order, tmp_path):
    library = installed("ctranslate2")
    model = TranslationModel(translation(order), 13, 13, pad_id=PAD).eval()
    ctranslate.save(model, translation(order), 20, tmp_path)
    source, target, names = [5, 6, 7], [11, 9, 10, 4], ctranslate.piece_names(13)
    translator = library.Translator(str(tmp_path), compute_type="float32")
    found = translator.score_batch([[names[id] for id in (*source, EOS)]], [[names[id] for id in target]])
    batch = collate([0], [source], [target])
    mine = logits(model, batch).log_softmax(1).gather(1, batch.labels[:, None])[:, 0]
    assert_close(torch.tensor(found[0].log_probs), mine.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("peer", images.PEERS)
def test_a_vision_transformer_has_our_size_and_trains(peer):
    package, make = images.PEERS[peer]
    installed(package or "torch")
    sizes = [sum(weight.numel() for weight in build(IMAGES).parameters()) for build in (make, images.ours)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    assert make(IMAGES)(IMAGES.images()).shape == (2, 10)
    assert images.training("plain", peer, IMAGES)() == images.forward("plain", peer, IMAGES)() == 2


@pytest.mark.parametrize("setting", ["plain", "bf16"])
def test_packed_weights_classify_alike(setting):
    if setting == "bf16" and not has_bfloat16():
        pytest.skip("this CPU has no bfloat16")
    assert images.forward(setting, f"transformer_core{images.PACKED}", IMAGES)() == 2


@pytest.mark.parametrize("name", [*attention.MODULES, *attention.FUNCTIONS])
def test_attention_runs_forward_and_backward_and_leaves_no_gradient(name):
    make = attention.module if name in attention.MODULES else attention.function
    if name == "timm":
        installed("timm")
    step = make("bf16", name, attention.AttentionWork(batch=2, heads=3, length=5, width=8))
    assert step() == 1 and all(leaf.grad is None for leaf in step.leaves)


def test_batches_come_from_the_recipe():
    flags = ["--data.embedded", "300", "--data.vocabulary.size", "400", "--data.filter.max_length", "60"]
    work = training_text.read_work(read(training_text.Recipe, [*flags, "--data.tokens", "256"]), batches=4)
    assert work.vocabulary == 400 and len(work.batches()) == 4
    assert all(batch.target.numel() <= 256 for batch in work.batches())


def test_the_exponent_is_that_of_the_largest_sizes():
    assert growth.slope([1, 2, 4, 8, 16], [5, 5, 16, 64, 256]) == pytest.approx(2)


@pytest.mark.parametrize("axis", growth.SIZES)
def test_the_smallest_size_of_each_axis_runs_and_is_drawn(axis, tmp_path):
    step = growth.make_step(axis, growth.SIZES[axis][0])
    seconds = [[growth.timed(step)], [1.0], [2.0]]
    growth.draw(growth.Curve(axis, [1, 2, 4], seconds, [1.0, 2.0, 4.0]), tmp_path / "plots" / "curve.png")
    assert (tmp_path / "plots" / "curve.png").stat().st_size > 1000
