"""Recurrent models against loops over PyTorch's single cells and the formulas of the papers, and in use."""

import itertools
import math

import numpy as np
import pytest
import torch
from steps import all_logits, check_steps_equal_the_whole
from torch import Tensor, nn
from torch.testing import assert_close

from tasks.translation import recurrent_layers
from tasks.translation.evaluate import ScoreConfig
from tasks.translation.model import TranslationConfig, TranslationModel, make_model
from tasks.translation.pairs import TextPairs
from tasks.translation.recurrent import RecurrentModel, RecurrentState
from tasks.translation.recurrent_layers import Encoder, RecurrentConfig, make_cells
from tasks.translation.shortlist import Shortlist
from tasks.translation.task import LossConfig, Translation, collate, decode, pad_source
from tasks.translation.translator import Translator
from tasks.translation.vocabulary import BOS, EOS, PAD, UNK, Vocabulary, VocabularyConfig, train_vocabulary
from transformer_core import BlockConfig, padding_mask
from transformer_core.packing import has_bfloat16
from transformer_core.search import SearchConfig

DIM, SOURCE_PIECES, TARGET_PIECES = 6, 17, 23
LENGTHS = [5, 3, 7]
DESIGNS = {
    "Cho": {"context": "every_step", "bidirectional": False},
    "Sutskever": {"context": "initial", "bidirectional": False, "reverse_source": True},
    "Bahdanau": {"context": "attention", "query": "previous", "score": "additive"},
    "Luong, general": {"context": "attention", "query": "new", "score": "bilinear"},
    "Luong, dot": {"context": "attention", "query": "new", "score": "dot"},
}
OTHERS = {
    "scaled": {"query": "previous", "score": "scaled_dot", "bidirectional": False},
    "cosine": {"query": "new", "score": "cosine"},
    "gaussian": {"query": "previous", "score": "gaussian"},
    "additive": {"query": "new", "score": "additive", "reverse_source": True, "bidirectional": False},
    "both ends": {"context": "initial"},
}
every_design = pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS)
every_variant = pytest.mark.parametrize("design", [*DESIGNS.values(), *OTHERS.values()], ids=[*DESIGNS, *OTHERS])
every_cell = pytest.mark.parametrize(("cell", "depth"), [("gru", 1), ("lstm", 1), ("gru", 2), ("lstm", 3)])


def new_model(**config) -> RecurrentModel:
    """In float64 and without dropout."""
    config = RecurrentConfig(**{"dim": DIM, "dropout": 0.0, **config})
    return RecurrentModel(config, SOURCE_PIECES, TARGET_PIECES, tie="none", pad_id=0).double()


def example() -> tuple[Tensor, Tensor, Tensor]:
    """Ragged source, its mask, and a target."""
    source, mask = torch.randint(4, SOURCE_PIECES, (3, 7)), padding_mask(torch.tensor(LENGTHS), 7)
    return source.masked_fill(~mask[:, 0, 0], 0), mask, torch.randint(4, TARGET_PIECES, (3, 6))


def check_steps(model: RecurrentModel) -> None:
    source, mask, _ = example()
    check_steps_equal_the_whole(model, source, mask, TARGET_PIECES)


# The definition: one sentence, one token and one layer at a time, by the cells of PyTorch.


def single_cell(cells: nn.GRU | nn.LSTM, layer: int, suffix: str = "") -> nn.GRUCell | nn.LSTMCell:
    weights = {
        name: getattr(cells, f"{name}_l{layer}{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    kind = nn.GRUCell if isinstance(cells, nn.GRU) else nn.LSTMCell
    cell = kind(weights["weight_ih"].size(1), weights["weight_hh"].size(1)).double()
    cell.load_state_dict(weights)
    return cell


def state_of(hidden: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return hidden[0] if isinstance(hidden, tuple) else hidden


def walk(cell: nn.Module, sequence: list[Tensor]):
    """States along a sequence of vectors, and what the cell ends with."""
    states, hidden = [], None
    for x in sequence:
        hidden = cell(x, hidden)
        states.append(state_of(hidden))
    return states, hidden


def side_by_side(left, right):
    if isinstance(left, tuple):
        return tuple(torch.cat(pair) for pair in zip(left, right, strict=True))
    return torch.cat([left, right])


def encode_by_cells(model: RecurrentModel, config: RecurrentConfig, ids: list[int]):
    sequence = [model.source_embedding.tokens.weight[id] * math.sqrt(DIM) for id in ids]
    sequence = sequence[::-1] if config.reverse_source else sequence
    ends = []
    for layer in range(config.depth):
        states, end = walk(single_cell(model.encoder.cells, layer), sequence)
        if config.bidirectional:
            backward, other = walk(single_cell(model.encoder.cells, layer, "_reverse"), sequence[::-1])
            states = [torch.cat(pair) for pair in zip(states, backward[::-1], strict=True)]
            end = side_by_side(end, other)
        sequence = states
        ends.append(end)
    return torch.stack(sequence), ends


def weigh(model: RecurrentModel, config: RecurrentConfig, query: Tensor, states: Tensor) -> Tensor:
    """The context vector by the formulas of both papers, exponentials written out."""
    weights = dict(model.decoder.score.named_parameters())
    match config.score:
        case "additive":
            W, U = weights["additive.query.weight"], weights["additive.key.weight"]
            energies = [weights["additive.weight.weight"][0] @ torch.tanh(W @ query + U @ state) for state in states]
        case "bilinear":
            energies = [query @ weights["weight"] @ state for state in states]
        case "dot":
            energies = [query @ state for state in states]
        case "scaled_dot":
            energies = [query @ state / math.sqrt(DIM) for state in states]
        case "cosine":
            sharp = weights["log_sharpness"].exp()
            energies = [sharp * query @ state / query.norm() / state.norm() for state in states]
        case "gaussian":
            width = weights["log_sigma"].exp()
            energies = [-(query - state).square().sum() / (2 * width**2) for state in states]
    shares = torch.stack(energies).exp()
    return sum(share * state for share, state in zip(shares / shares.sum(), states, strict=True))


def logits_by_cells(model: RecurrentModel, config: RecurrentConfig, source: list[int], target: list[int]) -> Tensor:
    states, hidden = encode_by_cells(model, config, source)
    cells = [single_cell(model.decoder.cells, layer) for layer in range(config.depth)]
    last, logits = state_of(hidden[-1]), []
    for id in target:
        word = model.target_embedding.tokens.weight[id] * math.sqrt(DIM)
        context = last
        if config.context == "attention" and config.query == "previous":
            context = weigh(model, config, state_of(hidden[-1]), states)
        looped = config.context == "every_step" or (config.context == "attention" and config.query == "previous")
        x = torch.cat([word, context]) if looped else word
        for layer, cell in enumerate(cells):
            hidden[layer] = cell(x, hidden[layer])
            x = state_of(hidden[layer])
        if looped:
            pairs = model.decoder.combine.pairs
            both = pairs.weight @ torch.cat([x, word, context]) + pairs.bias
            x = torch.maximum(both[0::2], both[1::2])
        elif config.context == "attention":
            context = weigh(model, config, x, states)
            x = torch.tanh(model.decoder.combine.weight @ torch.cat([context, x]))
        logits.append(model.output.weight @ x)
    return torch.stack(logits)


@every_cell
@every_variant
@torch.no_grad()
def test_a_padded_batch_gives_what_single_cells_give_of_each_sentence(design, cell, depth):
    config = RecurrentConfig(**design, cell=cell, depth=depth, dim=DIM, dropout=0.0)
    model, (source, mask, target) = new_model(**design, cell=cell, depth=depth), example()
    found = all_logits(model, source, mask, target)
    for row, length in enumerate(LENGTHS):
        ids = source[row, :length].tolist()
        expected = logits_by_cells(model, config, ids, target[row].tolist())
        assert_close(found[row], expected, rtol=0, atol=1e-10)
        alone = all_logits(model, source[row : row + 1, :length], None, target[row : row + 1])
        assert_close(alone[0], expected, rtol=0, atol=1e-10)


def check_padding_is_not_read(model: RecurrentModel) -> None:
    source, mask, target = example()
    other = source.where(mask[:, 0, 0], torch.randint_like(source, 4, SOURCE_PIECES))
    more = nn.functional.pad(source, (0, 4)), nn.functional.pad(mask, (0, 4), value=False)
    expected = all_logits(model, source, mask, target)
    assert torch.equal(all_logits(model, other, mask, target), expected)
    assert_close(all_logits(model, *more, target), expected, rtol=0, atol=1e-10)


def check_only_what_was_said_counts(model: RecurrentModel) -> None:
    source, mask, target = example()
    before = all_logits(model, source, mask, target)
    for position in range(target.size(1)):
        other = target.clone()
        other[:, position] = 3
        after = all_logits(model, source, mask, other)
        assert torch.equal(after[:, :position], before[:, :position])
        assert (after[:, position:] != before[:, position:]).any(2).all()


def check_every_real_source_token_is_read(model: RecurrentModel) -> None:
    source, mask, target = example()
    before = all_logits(model, source, mask, target)
    for sentence, length in enumerate(LENGTHS):
        for position in range(length):
            other = source.clone()
            other[sentence, position] = 3
            after = all_logits(model, other, mask, target)
            assert (after[sentence] != before[sentence]).any(1).all()
            assert torch.equal(after[torch.arange(3) != sentence], before[torch.arange(3) != sentence])


@pytest.mark.parametrize(
    "check", [check_padding_is_not_read, check_only_what_was_said_counts, check_every_real_source_token_is_read]
)
@every_variant
def test_only_the_real_source_and_the_past_reach_an_output(design, check):
    check(new_model(**design))


def attention_without_mask(monkeypatch):
    attend = recurrent_layers.attend
    monkeypatch.setattr(recurrent_layers, "attend", lambda query, memory, score: attend(query, unmasked(memory), score))


def unmasked(memory):
    return memory._replace(mask=None)


def encoder_without_mask(monkeypatch):
    forward = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, x, mask: forward(self, x, None))


@pytest.mark.parametrize("breakage", [attention_without_mask, encoder_without_mask])
def test_the_check_fails_where_padding_is_read(breakage, monkeypatch):
    breakage(monkeypatch)
    with pytest.raises(AssertionError):
        check_padding_is_not_read(new_model(score="dot"))


# Step by step


@every_cell
@every_variant
@torch.inference_mode()
def test_decoding_step_by_step_equals_the_whole_at_every_step(design, cell, depth):
    check_steps(new_model(**design, cell=cell, depth=depth).eval())


def nobody_is_reordered(monkeypatch):
    monkeypatch.setattr(RecurrentState, "reorder", lambda self, parents: None)


def memory_stays_with_the_first(monkeypatch):
    keep = RecurrentState.keep

    def broken(self, sentences):
        memory = self.memory
        keep(self, sentences)
        self.memory = memory.keep(torch.arange(len(sentences)))

    monkeypatch.setattr(RecurrentState, "keep", broken)


def states_stay_with_the_first(monkeypatch):
    def broken(self, sentences):
        self.memory = self.memory.keep(sentences)
        self.hidden = tuple(part[:, : len(sentences) * self.beams] for part in self.hidden)

    monkeypatch.setattr(RecurrentState, "keep", broken)


@pytest.mark.parametrize(
    "breakage",
    [nobody_is_reordered, memory_stays_with_the_first, states_stay_with_the_first, attention_without_mask],
)
@torch.inference_mode()
def test_the_check_fails_where_a_step_goes_wrong(breakage, monkeypatch):
    model = new_model(query="previous", score="additive").eval()
    breakage(monkeypatch)
    with pytest.raises(AssertionError):
        # The whole is computed by the same code, so what is wrong in both is compared with single cells as well.
        check_steps(model)
        check_padding_is_not_read(model)


@every_design
@torch.inference_mode()
def test_a_beam_as_wide_as_the_language_finds_the_best_of_all_translations(design):
    pieces, longest = [4, 5, 6], 3
    config = RecurrentConfig(**design, dim=DIM, dropout=0.0)
    model = RecurrentModel(config, 9, 7, tie="target", pad_id=PAD).double().eval()
    source, mask = pad_source([[5, 8, 4, 4], [7]])
    search = SearchConfig(beams=27, n_best=3, length_penalty="none", stop="best_possible", max_length=longest)
    found = decode([model], source, mask, search, [0, 1])
    outputs = [list(ids) for length in range(longest + 1) for ids in itertools.product(pieces, repeat=length)]
    for row, hypotheses in enumerate(found):
        real = source[row : row + 1] if mask is None else source[row, mask[row, 0, 0]][None]
        scored = []
        for ids in outputs:
            log_probs = all_logits(model, real, None, torch.tensor([[BOS, *ids]]))[0].log_softmax(1)
            scored.append((sum(log_probs[at, id].item() for at, id in enumerate([*ids, EOS])), ids))
        best = sorted(scored, reverse=True)[:3]
        assert [one.ids for one in hypotheses] == [ids for _, ids in best]
        assert [one.log_probability for one in hypotheses] == pytest.approx([score for score, _ in best], rel=1e-10)


@pytest.mark.parametrize("beams", [1, 3])
@every_design
def test_searching_among_candidates_equals_banning_all_others(design, beams, monkeypatch):
    config = RecurrentConfig(**design, dim=DIM, dropout=0.0)
    model = RecurrentModel(config, 40, 40, tie="all", pad_id=PAD).double().eval()
    allowed = [5, 8, 13, 21, 34]
    source, mask = pad_source([[6, 9, 30], [12]])
    search, prefix = SearchConfig(beams=beams, n_best=beams, max_length=7), [[39], []]
    shortlist = Shortlist(np.array(allowed), np.full((40, 1), EOS))
    found = decode([model], source, mask, search, [0, 1], prefix, shortlist=shortlist)
    step = RecurrentState.step

    def narrow(self, tokens):
        keep = torch.zeros(40, dtype=torch.bool)
        keep[[PAD, UNK, BOS, EOS, 39, *allowed]] = True
        return step(self, tokens).masked_fill(~keep, -torch.inf)

    monkeypatch.setattr(RecurrentState, "step", narrow)
    expected = decode([model], source, mask, search, [0, 1], prefix)
    for one, other in zip(found, expected, strict=True):
        assert [each.ids for each in one] == [each.ids for each in other]
        assert [each.score for each in one] == pytest.approx([each.score for each in other], rel=1e-10)
    assert found[0][0].ids[0] == 39


# Training


@every_cell
@every_variant
def test_gradients_reach_every_parameter(design, cell, depth):
    model = new_model(**design, cell=cell, depth=depth, dropout=0.1).train()
    all_logits(model, *example()).logsumexp(2).sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any(), name


@pytest.mark.parametrize("tie", ["none", "target", "all"])
def test_matrices_are_tied_as_asked(tie):
    config = RecurrentConfig(dim=DIM)
    model = RecurrentModel(config, TARGET_PIECES, TARGET_PIECES, tie=tie, pad_id=0)
    matrices = model.source_embedding.tokens.weight, model.target_embedding.tokens.weight, model.output.weight
    assert len({matrix.data_ptr() for matrix in matrices}) == {"none": 3, "target": 2, "all": 1}[tie]
    assert model.output.bias is None and model.output.weight.shape == (TARGET_PIECES, DIM)
    if tie == "all":
        with pytest.raises(ValueError, match="17 and 23 pieces: choose --model.tie target"):
            RecurrentModel(config, SOURCE_PIECES, TARGET_PIECES, tie=tie, pad_id=0)


def test_dropout_acts_in_training_only():
    model, inputs = new_model(dropout=0.5, depth=2, context="initial"), example()
    features, _ = model(*inputs, torch.arange(inputs[2].numel()))
    assert 0.2 < features.eq(0).double().mean() < 0.8
    assert not torch.equal(all_logits(model, *inputs), all_logits(model, *inputs))
    model.eval()
    assert torch.equal(all_logits(model, *inputs), all_logits(model, *inputs))


@pytest.mark.parametrize("depth", [1, 2])
def test_features_are_dropped_between_layers_in_training_only(depth):
    cells, x = make_cells(RecurrentConfig(depth=depth, dropout=0.5), DIM, DIM), torch.randn(3, 4, DIM)
    assert torch.equal(cells(x)[0], cells(x)[0]) == (depth == 1)
    cells.eval()
    assert torch.equal(cells(x)[0], cells(x)[0])


def new_task(**recurrent) -> Translation:
    config = RecurrentConfig(**{"dim": 32, "dropout": 0.0, **recurrent})
    model = TranslationConfig(kind="recurrent", recurrent=config)
    return Translation(TextPairs(), model, LossConfig(smoothing=0.0), SearchConfig(), ScoreConfig())


def train(task: Translation, ids: list[list[int]], pieces: int, updates: int) -> tuple[RecurrentModel, list[float]]:
    """Learn to copy; the losses are nats a token."""
    model = make_model(task.model, pieces, pieces, pad_id=PAD)
    assert isinstance(model, RecurrentModel)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batch, losses = collate(list(range(len(ids))), ids, ids), []
    for _ in range(updates):
        optimizer.zero_grad()
        loss = task.loss(model, batch).total / task.targets(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


@every_design
def test_it_learns_to_copy(design):
    ids = [torch.randint(4, 12, (length % 4 + 1,)).tolist() for length in range(48)]
    _, losses = train(new_task(**design), ids, 12, updates=60)
    assert losses[0] > 2.0 and losses[-1] < 0.4


@every_design
def test_bf16_autocast_stays_near_float32(design):
    model, inputs = new_model(**design).float(), example()
    exact = all_logits(model, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = all_logits(model, *inputs)
    rounded.float().logsumexp(2).sum().backward()
    assert_close(rounded.float(), exact, rtol=0, atol=0.05)


# In use


WORDS = "red dog house runs blue seven tree".split()


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.model"
    return train_vocabulary(lines(200), VocabularyConfig(size=40, byte_fallback=False), path)


def lines(count: int) -> list[str]:
    return [" ".join(WORDS[(i * i + j * 3) % 7] for j in range(i % 5 + 1)) for i in range(count)]


@pytest.fixture(scope="module", params=["gru", "lstm"])
def trained(vocabulary, request) -> RecurrentModel:
    torch.manual_seed(1)
    model, losses = train(new_task(cell=request.param), vocabulary.encode_all(lines(35)), len(vocabulary), updates=60)
    assert losses[-1] < 1.0
    return model.eval()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("search", [{"beams": 1}, {"beams": 3}, {"sample": True, "top_k": 1}], ids=str)
def test_packed_and_forked_translators_translate_as_the_plain_one(trained, vocabulary, precision, search):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    if precision == "bf16" and not has_bfloat16():
        pytest.skip("this CPU has no bfloat16")
    config = SearchConfig(max_length=12, **search)
    plain = decode([trained], *pad_source(vocabulary.encode_all(lines(20))), config, range(20))
    expected = [vocabulary.decode(hypotheses[0].ids) for hypotheses in plain]
    translator = Translator([trained], vocabulary, vocabulary, search=config, precision=precision)
    assert type(translator.searched[0].output).__name__ == "PackedLinear"
    found = translator.translate(lines(20))
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= (20 if precision == "fp32" else 16)
    forked = Translator([trained], vocabulary, vocabulary, search=config, precision=precision, tokens=20, workers=2)
    assert sum(a == b for a, b in zip(forked.translate(lines(20)), expected, strict=True)) >= (
        20 if precision == "fp32" else 16
    )
    assert len(set(expected)) > 7


def test_it_makes_an_ensemble_with_a_transformer(trained, vocabulary):
    block = BlockConfig(dim=16, num_heads=2, hidden_dim=24)
    other = TranslationModel(TranslationConfig(block=block), len(vocabulary), len(vocabulary), pad_id=PAD)
    alone, twice, both = (
        Translator(models, vocabulary, vocabulary, search=SearchConfig(beams=2, max_length=9)).n_best(lines(9))
        for models in ([trained], [trained] * 2, [trained, other])
    )
    assert [found[0].text for found in alone] == [found[0].text for found in twice]
    assert [found[0].score for found in alone] != pytest.approx([found[0].score for found in both], rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 7}, "half of --model.recurrent.dim 7: choose an even one"),
        ({"dim": 0}, "--model.recurrent.dim 0: choose 1 or more"),
        ({"depth": 0}, "--model.recurrent.depth 0: choose 1 or more"),
        ({"dropout": 1.0}, "--model.recurrent.dropout 1.0 is no share"),
        ({"reverse_source": True}, "reverse_source changes nothing .* give --model.recurrent.bidirectional false"),
    ],
)
def test_what_cannot_be_built_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RecurrentConfig(**settings)


def test_the_settings_of_the_other_kind_do_not_matter():
    block = BlockConfig(dim=8, num_heads=2, position="learned", max_length=3)
    config = TranslationConfig(kind="recurrent", block=block)
    Translation(TextPairs(), config, LossConfig(), SearchConfig(), ScoreConfig())
    assert isinstance(make_model(config, 9, 9, pad_id=PAD), RecurrentModel)
    assert isinstance(make_model(TranslationConfig(block=block), 9, 9, pad_id=PAD), TranslationModel)
