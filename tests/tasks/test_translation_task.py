"""Loss, search and scores of the task; each check is also run on a variant that is broken on purpose, and must fail."""

import math
import random
from collections.abc import Callable

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from tasks.errors import InputError
from tasks.task import Loss
from tasks.translation import task as module
from tasks.translation.data import Corpus
from tasks.translation.evaluate import ScoreConfig
from tasks.translation.filters import Filter
from tasks.translation.model import TranslationConfig, TranslationModel
from tasks.translation.pairs import PairData, TextPairs
from tasks.translation.task import Batch, LossConfig, Output, Translation, collate, decode, reference_nll
from tasks.translation.vocabulary import BOS, EOS, PAD, Vocabulary, VocabularyConfig
from transformer_core import BlockConfig, FactoredLogits, multihead
from transformer_core.loss import CrossEntropy
from transformer_core.search import Hypothesis, SearchConfig

PIECES = 13
SOURCES = [[5, 6, 7, 8, 9], [10, 4], [11, 12, 5, 6]]
TARGETS = [[4, 9], [6, 7, 8, 12, 5, 4, 10], [11]]
BLOCK = {"dim": 16, "num_heads": 2, "hidden_dim": 24, "dropout": 0.0}


def new_task(loss: LossConfig | None = None, data: TextPairs | None = None, **block) -> Translation:
    model = TranslationConfig(block=BlockConfig(**{**BLOCK, **block}), encoder_depth=2, decoder_depth=2)
    return Translation(
        data or TextPairs(), model, loss or LossConfig(), SearchConfig(beams=3, max_length=15), ScoreConfig()
    )


def new_model(task: Translation, pieces: int = PIECES) -> TranslationModel:
    torch.manual_seed(3)
    return TranslationModel(task.model, pieces, pieces, pad_id=PAD).double()


def loss_and_gradients(task: Translation, model: TranslationModel, *batches: Batch) -> list[Tensor]:
    model.zero_grad()
    losses = [task.loss(model, batch) for batch in batches]
    total = torch.stack([loss.total for loss in losses]).sum()
    total.backward()
    nll = torch.stack([loss.report["nll"] for loss in losses]).sum()
    return [total.detach(), nll, *(weight.grad.clone() for weight in model.parameters())]


# The loss


def with_more_padding(batch: Batch) -> Batch:
    """Five more columns on either side, and one more row of nothing but padding."""
    source, target = (F.pad(ids, (0, 5, 0, 1), value=PAD) for ids in (batch.source, batch.target))
    row, column = batch.positions // batch.target.size(1), batch.positions % batch.target.size(1)
    mask = F.pad(batch.mask, (0, 5, 0, 0, 0, 0, 0, 1), value=False)
    return Batch([*batch.rows, -1], source, mask, target, row * target.size(1) + column, batch.labels)


def check_padding_costs_nothing(task: Translation) -> None:
    model, batch = new_model(task), collate([0, 1, 2], SOURCES, TARGETS)
    expected = loss_and_gradients(task, model, batch)
    one_by_one = [collate([row], [SOURCES[row]], [TARGETS[row]]) for row in range(3)]
    assert task.targets(batch) == sum(map(task.targets, one_by_one)) == 13
    for batches in ([with_more_padding(batch)], one_by_one):
        for value, other in zip(loss_and_gradients(task, model, *batches), expected, strict=True):
            assert_close(value, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("r_drop", [0.0, 2.0])
@pytest.mark.parametrize("position", ["sinusoidal", "rotary"])
def test_padding_changes_neither_loss_nor_gradient(position, r_drop):
    check_padding_costs_nothing(new_task(LossConfig(smoothing=0.1, r_drop=r_drop), position=position))


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    hidden, weight = model(batch.source, batch.mask, batch.target, torch.arange(batch.target.numel()))
    return hidden @ weight.T


def padding_in_the_loss(monkeypatch):
    def broken(self, model, batch):
        labels = torch.full((batch.target.numel(),), PAD)
        labels[batch.positions] = batch.labels
        total = F.cross_entropy(logits_of(model, batch), labels, label_smoothing=0.1, reduction="sum")
        return Loss(total, {"nll": total.detach()})

    monkeypatch.setattr(Translation, "loss", broken)


def padding_in_the_smoothing(monkeypatch):
    def broken(self, model, batch):
        labels = torch.full((batch.target.numel(),), PAD)
        labels[batch.positions] = batch.labels
        log_probs = logits_of(model, batch).log_softmax(1)
        plain = F.nll_loss(log_probs, labels, ignore_index=PAD, reduction="sum")
        return Loss(0.9 * plain - 0.1 * log_probs.mean(1).sum(), {"nll": plain.detach()})

    monkeypatch.setattr(Translation, "loss", broken)


def mean_of_the_batch(monkeypatch):
    loss = Translation.loss

    def broken(self, model, batch):
        result = loss(self, model, batch)
        return Loss(result.total / len(batch.labels), result.report)

    monkeypatch.setattr(Translation, "loss", broken)


def encoder_reads_padding(monkeypatch):
    read = TranslationModel.read
    monkeypatch.setattr(TranslationModel, "read", lambda self, source, mask: read(self, source, None))


BREAK_PADDING = [padding_in_the_loss, padding_in_the_smoothing, mean_of_the_batch, encoder_reads_padding]


@pytest.mark.parametrize("breakage", BREAK_PADDING)
def test_the_check_fails_where_padding_counts(breakage, monkeypatch):
    breakage(monkeypatch)
    with pytest.raises(AssertionError):
        check_padding_costs_nothing(new_task())


def smoothed_by_numpy(logits: np.ndarray, labels: np.ndarray, smoothing: float) -> tuple[float, float]:
    log_probs = logits - logits.max(1, keepdims=True)
    log_probs -= np.log(np.exp(log_probs).sum(1, keepdims=True))
    wanted = np.full_like(log_probs, smoothing / log_probs.shape[1])
    rows = np.arange(len(labels))
    wanted[rows, labels] += 1 - smoothing
    return -(wanted * log_probs).sum(), -log_probs[rows, labels].sum()


def check_smoothing_is_that_of_numpy() -> None:
    for smoothing in (0.0, 0.1, 0.3):
        task = new_task(LossConfig(smoothing=smoothing))
        model, batch = new_model(task), collate([0, 1, 2], SOURCES, TARGETS)
        total, nll, *_ = loss_and_gradients(task, model, batch)
        logits = logits_of(model, batch)[batch.positions].detach().numpy()
        assert (total.item(), nll.item()) == pytest.approx(
            smoothed_by_numpy(logits, batch.labels.numpy(), smoothing), abs=1e-10
        )


def test_the_loss_is_label_smoothed_and_nll_is_not():
    check_smoothing_is_that_of_numpy()


def smoothing_over_the_others(monkeypatch):
    """As fairseq has it: the target gets nothing of what is spread."""

    def broken(logits, target, *, smoothing):
        log_probs = (logits.hidden @ logits.weight.T).log_softmax(1)
        plain = F.nll_loss(log_probs, target, reduction="sum")
        each = smoothing / (log_probs.size(1) - 1)
        return CrossEntropy((1 - smoothing - each) * plain - each * log_probs.sum(), plain.detach())

    monkeypatch.setattr(module, "linear_cross_entropy", broken)


def smoothed_nll(monkeypatch):
    entropy = module.linear_cross_entropy

    def broken(logits, target, *, smoothing):
        smoothed, _ = entropy(logits, target, smoothing=smoothing)
        return CrossEntropy(smoothed, smoothed.detach())

    monkeypatch.setattr(module, "linear_cross_entropy", broken)


@pytest.mark.parametrize("breakage", [smoothing_over_the_others, smoothed_nll])
def test_the_check_fails_where_smoothing_is_another(breakage, monkeypatch):
    breakage(monkeypatch)
    with pytest.raises(AssertionError):
        check_smoothing_is_that_of_numpy()


def test_r_drop_is_the_loss_of_two_passes_and_their_divergences_by_plain_autograd():
    smoothing, weight = 0.1, 3.0
    task = new_task(LossConfig(smoothing=smoothing, r_drop=weight), dropout=0.3, attention_dropout=0.2)
    model, batch = new_model(task).train(), collate([0, 1, 2], SOURCES, TARGETS)
    torch.manual_seed(7)
    total, nll, *gradients = loss_and_gradients(task, model, batch)
    model.zero_grad()
    torch.manual_seed(7)
    twice = Batch([], *(torch.cat([part] * 2) for part in batch[1:4]), batch.positions, batch.labels)
    passes = [half[batch.positions].log_softmax(1) for half in logits_of(model, twice).chunk(2)]
    plain = sum(F.nll_loss(half, batch.labels, reduction="sum") for half in passes)
    uniform = -sum(half.mean(1).sum() for half in passes)
    one, other = passes
    divergence = sum(F.kl_div(p, q, reduction="sum", log_target=True) for p, q in ((one, other), (other, one)))
    assert divergence > 1
    # Liang et al. 2021, equations 2 to 4, halved: what a target costs stays comparable with that of a single pass.
    expected = ((1 - smoothing) * plain + smoothing * uniform + weight / 2 * divergence) / 2
    expected.backward()
    assert_close(total, expected.detach(), rtol=0, atol=1e-10)
    assert_close(nll, plain.detach() / 2, rtol=0, atol=1e-10)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        assert_close(gradient, parameter.grad, rtol=0, atol=1e-10)


# A source with nothing to see


def check_a_blind_source_harms_nobody(dtype: torch.dtype) -> None:
    task = new_task()
    model, batch = new_model(task).to(dtype), collate([0, 1, 2], SOURCES, TARGETS)
    assert batch.mask is not None
    blind = batch._replace(source=batch.source.clone(), mask=batch.mask.clone())
    blind.source[1], blind.mask[1] = PAD, False
    sentence = batch.positions // batch.target.size(1)
    seen, unseen = (FactoredLogits(*model(*each[1:5])).hidden for each in (batch, blind))
    assert torch.equal(seen[sentence != 1], unseen[sentence != 1])
    assert not torch.equal(seen[sentence == 1], unseen[sentence == 1])
    assert all(value.isfinite().all() for value in loss_and_gradients(task, model, blind))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_source_of_padding_alone_gives_finite_numbers_and_leaves_the_others_alone(dtype):
    check_a_blind_source_harms_nobody(dtype)


def softmax_of_nothing(monkeypatch):
    def broken(query, key, value, *, mask=None, causal=False, **rules):
        logits = query @ key.mT / query.size(-1) ** 0.5
        allowed = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask.expand_as(logits)
        allowed = allowed.tril() if causal else allowed
        return logits.masked_fill(~allowed, -torch.inf).softmax(-1) @ value

    monkeypatch.setattr(multihead, "attention", broken)


def test_the_check_fails_where_a_softmax_has_nothing_to_sum(monkeypatch):
    softmax_of_nothing(monkeypatch)
    with pytest.raises(AssertionError):
        check_a_blind_source_harms_nobody(torch.float32)


# Shifted inputs, by learning to copy


def copies(count: int, draw: random.Random) -> list[list[int]]:
    return [[draw.randrange(4, PIECES) for _ in range(draw.randint(2, 5))] for _ in range(count)]


def share_copied_after_training() -> float:
    task, rows = new_task(LossConfig(smoothing=0.0), dim=32, hidden_dim=64), copies(48, random.Random(1))
    torch.manual_seed(1)
    model = TranslationModel(task.model, PIECES, PIECES, pad_id=PAD)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.9, 0.98))
    batch = module.collate(list(range(48)), rows, rows)
    for _ in range(90):
        optimizer.zero_grad()
        (task.loss(model, batch).total / task.targets(batch)).backward()
        optimizer.step()
    source, mask = module.pad_source(rows)
    found = decode([model.eval()], source, mask, SearchConfig(beams=1), range(48))
    return sum(best.ids == row for (best, *_), row in zip(found, rows, strict=True)) / 48


def test_it_learns_to_copy():
    assert share_copied_after_training() == 1


def inputs_that_are_not_shifted(monkeypatch):
    collate = module.collate

    def broken(rows, source, target):
        batch = collate(rows, source, target)
        leaked = module.pad([[*ids, EOS] for ids in target])
        return batch._replace(target=leaked)

    monkeypatch.setattr(module, "collate", broken)


def test_it_does_not_learn_to_copy_where_inputs_are_not_shifted(monkeypatch):
    inputs_that_are_not_shifted(monkeypatch)
    assert share_copied_after_training() < 0.5


def check_an_untrained_model_knows_nothing() -> None:
    """Logits of unit variance cost half a nat more than equal ones."""
    draw, pieces = random.Random(1), 101
    task = new_task(LossConfig(smoothing=0.0), dim=64, num_heads=4)
    model = new_model(task, pieces)
    rows = [[draw.randrange(4, pieces) for _ in range(11)] for _ in range(64)]
    batch = module.collate(list(range(64)), rows, rows)
    mean = task.loss(model, batch).total.item() / task.targets(batch)
    assert math.log(pieces) - 0.05 < mean < math.log(pieces) + 0.75


def test_an_untrained_model_spends_the_logarithm_of_the_vocabulary_on_each_piece():
    check_an_untrained_model_knows_nothing()


def test_the_check_fails_where_inputs_are_not_shifted(monkeypatch):
    inputs_that_are_not_shifted(monkeypatch)
    with pytest.raises(AssertionError):
        check_an_untrained_model_knows_nothing()


def test_a_batch_is_padded_on_the_right_and_marked():
    batch = collate([8, 3, 5], SOURCES, TARGETS)
    assert batch.rows == [8, 3, 5]
    assert batch.source[1].tolist() == [10, 4, EOS, PAD, PAD, PAD]
    assert batch.mask[:, 0, 0].sum(1).tolist() == [6, 3, 5]
    assert batch.target[0].tolist() == [BOS, 4, 9, PAD, PAD, PAD, PAD, PAD]
    assert batch.target.flatten()[batch.positions].tolist() == [BOS, 4, 9, BOS, *TARGETS[1], BOS, 11]
    assert batch.labels.tolist() == [4, 9, EOS, *TARGETS[1], EOS, 11, EOS]
    assert collate([0, 1], [[5], [6]], [[], []]).mask is None


# Probabilities


def check_scores_are_those_of_forced_decoding(config: SearchConfig, *more: TranslationModel) -> None:
    model = new_model(new_task())
    source, mask = module.pad_source(SOURCES)
    found = decode([model, *more], source, mask, config, range(3))
    for row, hypotheses in enumerate(found):
        assert len(hypotheses) == config.n_best
        for ids, score, log_probability in hypotheses:
            (nll,), (tokens,) = reference_nll(model, module.collate([row], [SOURCES[row]], [ids]))
            assert tokens == len(ids) + 1
            assert log_probability == pytest.approx(-nll, abs=1e-10)
            assert score == pytest.approx(-nll / (len(ids) + 1) ** config.alpha, abs=1e-10)


@pytest.mark.parametrize(
    "config",
    [
        SearchConfig(beams=1),
        SearchConfig(beams=4, n_best=3, alpha=0.6),
        SearchConfig(beams=4, n_best=2, max_length=3, stop="best_possible"),
    ],
    ids=["greedy", "beam", "short"],
)
def test_the_score_of_a_search_is_that_of_forced_decoding(config):
    check_scores_are_those_of_forced_decoding(config)


def test_two_copies_of_a_model_score_like_one():
    check_scores_are_those_of_forced_decoding(SearchConfig(beams=4, n_best=2), new_model(new_task()))


def end_without_price(monkeypatch):
    found = module.search

    def broken(state, config, **rules):
        results = found(state, config, **rules)
        return [[Hypothesis(h.ids, h.score, h.log_probability + 0.01) for h in each] for each in results]

    monkeypatch.setattr(module, "search", broken)


def begins_with_the_end(monkeypatch):
    search = module.search
    monkeypatch.setattr(
        module, "search", lambda state, config, **rules: search(state, config, **{**rules, "bos_id": EOS})
    )


def reference_without_its_end(monkeypatch):
    collate = module.collate

    def broken(rows, source, target):
        batch = collate(rows, source, target)
        kept = batch.labels != EOS
        return batch._replace(positions=batch.positions[kept], labels=batch.labels[kept])

    monkeypatch.setattr(module, "collate", broken)


@pytest.mark.parametrize("breakage", [end_without_price, begins_with_the_end, reference_without_its_end])
def test_the_check_fails_where_a_probability_is_another(breakage, monkeypatch):
    breakage(monkeypatch)
    with pytest.raises(AssertionError):
        check_scores_are_those_of_forced_decoding(SearchConfig(beams=3))


# Text, from files to scores

WORDS = {"red": "rot", "dog": "Hund", "house": "Haus", "seven": "sieben", "bridge": "Brücke", "opens,": "öffnet,"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A task that has read 100 and 29 pairs, with noise wherever there can be some."""
    folder, draw = tmp_path_factory.mktemp("text"), random.Random(1)
    for name, count in (("train", 100), ("valid", 29)):
        rows = [[draw.choice(list(WORDS)) for _ in range(draw.randint(4, 9))] for _ in range(count)]
        for side, lines in (("en", rows), ("de", [[WORDS[word] for word in row] for row in rows])):
            (folder / f"{name}.{side}").write_text("".join(f"{' '.join(line)}\n" for line in lines), encoding="utf-8")
    data = TextPairs(
        folder=str(folder),
        train=[Corpus(source="train.en", target="train.de")],
        valid=[Corpus(source="valid.en", target="valid.de")],
        vocabulary=VocabularyConfig(size=60, byte_fallback=False, dropout=0.3),
        tokens=128,
        filter=Filter(max_length=100),
    )
    noise = {"dropout": 0.3, "attention_dropout": 0.2, "hidden_dropout": 0.2}
    task = new_task(data=data, **noise)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        task.prepare(folder)
    return task


def predict_all(task: Translation, model: TranslationModel, epoch: int = 0) -> list[Output]:
    """As the loop does it: in the order of the plan, gathered by row."""
    found = {}
    for rows in task.plan("valid", epoch):
        for row, output in task.predict("valid", model, task.batch("valid", rows, epoch)):
            assert row not in found
            found[row] = output
    return [found[row] for row in range(29)]


def check_evaluation_is_without_noise(task: Translation) -> None:
    torch.manual_seed(1)
    model = task.build().eval()
    first, second = predict_all(task, model, epoch=0), predict_all(task, model, epoch=1)
    assert first == second
    assert task.measure("valid", first) == task.measure("valid", second)


def test_evaluation_repeats_itself(prepared):
    check_evaluation_is_without_noise(prepared)


def dropout_for_ever(monkeypatch):
    monkeypatch.setattr(nn.Module, "eval", lambda self: self.train())


def attention_dropout_for_ever(monkeypatch):
    attention = multihead.attention
    monkeypatch.setattr(multihead, "attention", lambda *x, **rules: attention(*x, **{**rules, "dropout": 0.2}))


def segmentation_noise_for_ever(monkeypatch):
    def broken(self, split, rows, epoch):
        for row in rows:
            sides = self.splits[split].text[row]
            yield tuple(self.source.sample(sides[name], 0.3, f"{epoch}-{row}") for name in ("source", "target"))

    monkeypatch.setattr(PairData, "ids", broken)


@pytest.mark.parametrize("breakage", [dropout_for_ever, attention_dropout_for_ever, segmentation_noise_for_ever])
def test_the_check_fails_where_evaluation_is_noisy(prepared, breakage, monkeypatch):
    breakage(monkeypatch)
    with pytest.raises(AssertionError):
        check_evaluation_is_without_noise(prepared)


def check_a_perfect_model_scores_100(task: Translation, monkeypatch) -> None:
    """The search finds the reference of each sentence, whatever batch it is in."""

    def perfect(models, source, mask, config, sentence_ids, prefix=None, **options):
        return [[Hypothesis(task.pairs.splits["valid"].target[row], 0.0, 0.0)] for row in sentence_ids]

    monkeypatch.setattr(module, "decode", perfect)
    metrics = task.measure("valid", outputs := predict_all(task, task.build().eval()))
    assert (metrics["bleu"], metrics["chrf2"], metrics["ter"]) == pytest.approx((100, 100, 0))
    assert metrics["exact"] == metrics["length_ratio"] == 1
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    random.Random(1).shuffle(outputs)
    assert task.measure("valid", outputs)["bleu"] < 50


def test_the_text_is_scored_line_by_line_as_people_write_it(prepared, monkeypatch):
    check_a_perfect_model_scores_100(prepared, monkeypatch)


def pieces_instead_of_text(monkeypatch):
    monkeypatch.setattr(Vocabulary, "decode", lambda self, ids: " ".join(self.pieces[i] for i in ids))


def order_of_the_plan(monkeypatch):
    plan = Translation.plan
    renamed: dict[int, int] = {}

    def predict(self, split, model, batch, predict=Translation.predict):
        for row in [row for rows in plan(self, split, 0) for row in rows]:
            renamed.setdefault(row, len(renamed))
        return [(renamed[row], output) for row, output in predict(self, split, model, batch)]

    monkeypatch.setattr(Translation, "predict", predict)


@pytest.mark.parametrize("breakage", [pieces_instead_of_text, order_of_the_plan])
def test_the_check_fails_where_something_else_is_scored(prepared, breakage, monkeypatch):
    breakage(monkeypatch)
    with pytest.raises(AssertionError):
        check_a_perfect_model_scores_100(prepared, monkeypatch)


def test_the_perplexity_is_that_of_the_reference_per_piece_without_smoothing(prepared):
    model = prepared.build().eval()
    outputs = predict_all(prepared, model)
    whole = prepared.batch("valid", range(29), 0)
    with torch.inference_mode():
        logits = logits_of(model, whole)[whole.positions]
    expected = F.cross_entropy(logits.double(), whole.labels)
    assert prepared.measure("valid", outputs)["loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_samples_show_the_scores_with_signatures_and_lines_that_belong_together(prepared):
    outputs = [Output(f"hypothesis {row}", 1.0, 1) for row in range(29)]
    prepared.measure("valid", outputs)
    lines = prepared.samples("valid", outputs)
    assert lines[0].startswith("BLEU|nrefs:1|") and "version:" in lines[0]
    text = prepared.pairs.splits["valid"].text
    for begin, row in zip(range(3, 12, 3), (0, 9, 18), strict=True):
        shown = [line.split(maxsplit=1)[1] for line in lines[begin : begin + 3]]
        assert shown == [text[row]["source"], text[row]["target"], f"hypothesis {row}"]


def test_less_is_better_of_these_metrics_alone():
    assert Translation.falling == {"loss", "perplexity", "ter", "empty", "repetition", "copy"}


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: new_task(data=TextPairs(vocabulary=VocabularyConfig(joint=False))),
            "--model.tie all.*--model.tie target",
        ),
        (lambda: new_task(position="learned", max_length=256), "--model.block.max_length 256.*give 257 or more"),
    ],
)
def test_settings_of_two_groups_that_contradict_are_refused(make: Callable[[], Translation], message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_search_is_greedy_while_training_and_never_longer_than_asked_for(prepared, monkeypatch):
    """Longer than `search` says it could leave the learned positions."""
    asked, decode = [], module.decode
    monkeypatch.setattr(module, "decode", lambda *given, **options: asked.append(given[3]) or decode(*given))
    model, batch = prepared.build().eval(), prepared.batch("valid", [0], 0)
    for split in ("valid", "test"):
        prepared.predict(split, model, batch)
    assert asked == [SearchConfig(beams=1, max_length=15), SearchConfig(beams=3, max_length=15)]


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (LossConfig, {"smoothing": 1.5}, "--loss.smoothing=1.5 is no share"),
        (LossConfig, {"r_drop": -1.0}, "--loss.r_drop=-1.0 must be 0 or more"),
        (TextPairs, {"window": 0}, "choose --data.window 1 or more"),
        (TextPairs, {"seed": -1}, "choose --data.seed 0 or more"),
        (SearchConfig, {"max_length": 0}, "--search.max_length=0 must be at least 1"),
        (VocabularyConfig, {"symbols": ("<0x41>",)}, "are pieces for bytes"),
    ],
)
def test_settings_that_mean_nothing_are_refused(config, given, message):
    with pytest.raises(ValueError, match=message):
        config(**given)
