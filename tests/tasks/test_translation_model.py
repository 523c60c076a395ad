"""The whole model against torch.nn.Transformer, and what may and may not reach what inside it."""

import math

import pytest
import torch
from safetensors.torch import load_model, save_model
from steps import all_logits, check_steps_equal_the_whole
from torch import Tensor, nn
from torch.testing import assert_close

from tasks.translation.model import TranslationConfig, TranslationModel
from transformer_core import BlockConfig, CachedState, TokenEmbedding, padding_mask, sinusoidal_table
from transformer_core.search import SearchConfig

DIM, HEADS, HIDDEN, ENCODERS, DECODERS = 12, 3, 20, 2, 3
SOURCE_PIECES, TARGET_PIECES = 17, 23
SOURCE_LENGTHS = torch.tensor([5, 3, 7])


def new_model(tie: str = "target", **block) -> TranslationModel:
    """In float64; all weights are random, those too that begin as zeros or ones."""
    options = {"dim": DIM, "num_heads": HEADS, "hidden_dim": HIDDEN, "dropout": 0.0, **block}
    config = TranslationConfig(block=BlockConfig(**options), encoder_depth=ENCODERS, decoder_depth=DECODERS, tie=tie)
    source_pieces = TARGET_PIECES if tie == "all" else SOURCE_PIECES
    model = TranslationModel(config, source_pieces, TARGET_PIECES, pad_id=0).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def example() -> tuple[Tensor, Tensor, Tensor]:
    """Ragged source, its mask, and a target."""
    source = torch.randint(4, SOURCE_PIECES, (3, 7))
    mask = padding_mask(SOURCE_LENGTHS, 7)
    return source.masked_fill(~mask[:, 0, 0], 0), mask, torch.randint(4, TARGET_PIECES, (3, 6))


def check_steps(model: TranslationModel) -> None:
    source, mask, _ = example()
    check_steps_equal_the_whole(model, source, mask, TARGET_PIECES)


class Reference(nn.Module):
    """The same model by torch.nn.Transformer, whose masks say who may not look."""

    def __init__(self, order: str) -> None:
        super().__init__()
        pre = order == "pre"
        options = {"dropout": 0.0, "batch_first": True, "norm_first": pre}
        encoder = nn.TransformerEncoderLayer(DIM, HEADS, HIDDEN, **options)
        decoder = nn.TransformerDecoderLayer(DIM, HEADS, HIDDEN, **options)
        self.transformer = nn.Transformer(
            custom_encoder=nn.TransformerEncoder(
                encoder, ENCODERS, nn.LayerNorm(DIM) if pre else None, enable_nested_tensor=False
            ),
            custom_decoder=nn.TransformerDecoder(decoder, DECODERS, nn.LayerNorm(DIM) if pre else None),
            d_model=DIM,
            nhead=HEADS,
            batch_first=True,
        )
        self.source, self.target = nn.Embedding(SOURCE_PIECES, DIM), nn.Embedding(TARGET_PIECES, DIM)
        self.double()

    def forward(self, source: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        ahead = nn.Transformer.generate_square_subsequent_mask(target.size(1), dtype=torch.double)
        states = self.transformer(
            self.embed(self.source, source),
            self.embed(self.target, target),
            tgt_mask=ahead,
            src_key_padding_mask=~mask[:, 0, 0],
            memory_key_padding_mask=~mask[:, 0, 0],
        )
        return states @ self.target.weight.T

    def embed(self, embedding: nn.Embedding, ids: Tensor) -> Tensor:
        table = sinusoidal_table(ids.size(1), DIM)
        return embedding(ids) * math.sqrt(DIM) + table

    def take_over(self, model: TranslationModel) -> None:
        names = {f"{side}_embedding.tokens.": f"{side}." for side in ("source", "target")}
        for stack in ("encoder", "decoder"):
            for index in range(DECODERS):
                ours, theirs = f"{stack}.blocks.{index}.", f"transformer.{stack}.layers.{index}."
                sublayers = {
                    "attention": "self_attn",
                    "self_attention": "self_attn",
                    "cross_attention": "multihead_attn",
                }
                for name, other in sublayers.items():
                    names[f"{ours}{name}.input."] = f"{theirs}{other}.in_proj_"
                    names[f"{ours}{name}.output."] = f"{theirs}{other}.out_proj."
                branches = ["attention"] if stack == "encoder" else ["self_attention", "cross_attention"]
                for number, name in enumerate([*branches, "feed_forward"], 1):
                    names[f"{ours}{name}_branch.norm."] = f"{theirs}norm{number}."
                names[f"{ours}feed_forward.wide."] = f"{theirs}linear1."
                names[f"{ours}feed_forward.narrow."] = f"{theirs}linear2."
            names[f"{stack}.norm."] = f"transformer.{stack}.norm."
        state = model.state_dict()
        del state["output.weight"]
        renamed = {}
        for key, value in state.items():
            begin = next(begin for begin in names if key.startswith(begin))
            renamed[names[begin] + key.removeprefix(begin)] = value
        self.load_state_dict(renamed)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_it_equals_the_transformer_of_pytorch_with_the_same_weights(order):
    model, reference = new_model(order=order), Reference(order)
    reference.take_over(model)
    inputs = example()
    ours, theirs = all_logits(model, *inputs), reference(*inputs)
    assert_close(ours, theirs, rtol=0, atol=1e-10)
    for logits in (ours, theirs):
        logits.logsumexp(2).sum().backward()
    assert_close(model.source_embedding.tokens.weight.grad, reference.source.weight.grad, rtol=0, atol=1e-10)
    assert_close(model.target_embedding.tokens.weight.grad, reference.target.weight.grad, rtol=0, atol=1e-10)


def count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("tie", ["none", "target", "all"])
def test_it_has_as_many_weights_as_the_paper_says(tie, order):
    attention = 4 * DIM * DIM + 4 * DIM
    feed_forward = 2 * DIM * HIDDEN + HIDDEN + DIM
    norm = 2 * DIM
    blocks = ENCODERS * (attention + feed_forward + 2 * norm) + DECODERS * (2 * attention + feed_forward + 3 * norm)
    blocks += 2 * norm if order == "pre" else 0
    pieces = {"none": SOURCE_PIECES + 2 * TARGET_PIECES, "target": SOURCE_PIECES + TARGET_PIECES, "all": TARGET_PIECES}
    assert count(new_model(tie, order=order)) == blocks + pieces[tie] * DIM
    assert count(Reference(order).transformer) == blocks


@pytest.mark.parametrize(("tie", "shared"), [("none", 3), ("target", 2), ("all", 1)])
def test_tied_matrices_are_one_piece_of_memory_and_stay_so_when_loaded(tmp_path, tie, shared):
    model, loaded = new_model(tie), new_model(tie)
    save_model(model, str(tmp_path / "model.safetensors"))
    load_model(loaded, tmp_path / "model.safetensors")
    for each in (model, loaded):
        assert len({weight.data_ptr() for weight in matrices(each)}) == shared
    assert torch.equal(all_logits(loaded, *(inputs := example())), all_logits(model, *inputs))


def matrices(model: TranslationModel) -> list[Tensor]:
    return [model.source_embedding.tokens.weight, model.target_embedding.tokens.weight, model.output.weight]


@pytest.mark.parametrize("tie", ["none", "target", "all"])
def test_embeddings_and_output_begin_so_that_logits_have_unit_variance(tie):
    config = TranslationConfig(block=BlockConfig(dim=32, num_heads=2), tie=tie)
    model = TranslationModel(config, 211, 211, pad_id=0)
    for matrix in matrices(model):
        assert matrix[1:].std().item() == pytest.approx(32**-0.5, rel=0.05)
        assert matrix[1:].mean().item() == pytest.approx(0, abs=0.01)
    for embedding in (model.source_embedding, model.target_embedding):
        assert not embedding.tokens.weight[0].any()


def test_three_ways_tied_takes_one_vocabulary():
    config = TranslationConfig(block=BlockConfig(dim=DIM, num_heads=HEADS))
    with pytest.raises(ValueError, match=r"17 and 23 pieces: choose --model.tie target or --data.vocabulary.joint"):
        TranslationModel(config, SOURCE_PIECES, TARGET_PIECES, pad_id=0)


@pytest.mark.parametrize("name", ["encoder_depth", "decoder_depth"])
def test_a_stack_without_blocks_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        TranslationConfig(**{name: 0})


# What may reach what. Each check has variants of the model that are broken on purpose, on which it must fail.


def check_padding_is_not_read(model: TranslationModel) -> None:
    source, mask, target = example()
    other = source.where(mask[:, 0, 0], torch.randint_like(source, 4, SOURCE_PIECES))
    assert torch.equal(all_logits(model, source, mask, target), all_logits(model, other, mask, target))


def check_every_real_source_token_is_read(model: TranslationModel) -> None:
    source, mask, target = example()
    before = all_logits(model, source, mask, target)
    for sentence, length in enumerate(SOURCE_LENGTHS.tolist()):
        for position in range(length):
            other = source.clone()
            other[sentence, position] = 3
            after = all_logits(model, other, mask, target)
            assert (after[sentence] != before[sentence]).any(1).all()
            assert torch.equal(after[torch.arange(3) != sentence], before[torch.arange(3) != sentence])


def check_only_what_was_said_counts(model: TranslationModel) -> None:
    source, mask, target = example()
    before = all_logits(model, source, mask, target)
    for position in range(target.size(1)):
        other = target.clone()
        other[:, position] = 3
        after = all_logits(model, source, mask, other)
        assert torch.equal(after[:, :position], before[:, :position])
        assert (after[:, position:] != before[:, position:]).any(2).all()


def check_no_gradient_comes_from_the_future(model: TranslationModel) -> None:
    source, mask, target = example()
    embedded: list[Tensor] = []
    hook = model.target_embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    logits = all_logits(model, source, mask, target)
    hook.remove()
    for position in range(target.size(1)):
        (gradient,) = torch.autograd.grad(logits[:, position].logsumexp(1).sum(), embedded[0], retain_graph=True)
        reached = gradient.ne(0).any(2)
        assert reached[:, : position + 1].all() and not reached[:, position + 1 :].any()


CHECKS = [
    check_padding_is_not_read,
    check_every_real_source_token_is_read,
    check_only_what_was_said_counts,
    check_no_gradient_comes_from_the_future,
]


@pytest.mark.parametrize("position", ["sinusoidal", "rotary", "relative"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("check", CHECKS)
def test_only_the_real_source_and_the_past_reach_an_output(check, training, position):
    check(new_model(position=position, num_heads=2).train(training))


def reads_the_future(model, monkeypatch):
    for block in model.decoder.blocks:
        block.self_attention.causal = False


def reads_the_future_in_one_layer(model, monkeypatch):
    model.decoder.blocks[-1].self_attention.causal = False


def mask_of_the_other_polarity(model, monkeypatch):
    read = model.read
    monkeypatch.setattr(model, "read", lambda source, mask: read(source, ~mask))


def encoder_without_mask(model, monkeypatch):
    encoder = model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda x, mask: encoder(x, None))


def cross_attention_without_mask(model, monkeypatch):
    read = model.decoder.read
    monkeypatch.setattr(model.decoder, "read", lambda states, mask: read(states, None))


def one_source_for_all(model, monkeypatch):
    encoder = model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda x, mask: encoder(x[:1].expand_as(x), mask[:1]))


@pytest.mark.parametrize(
    ("check", "breakage"),
    [
        (check_only_what_was_said_counts, reads_the_future),
        (check_only_what_was_said_counts, reads_the_future_in_one_layer),
        (check_no_gradient_comes_from_the_future, reads_the_future),
        (check_no_gradient_comes_from_the_future, reads_the_future_in_one_layer),
        (check_padding_is_not_read, mask_of_the_other_polarity),
        (check_padding_is_not_read, encoder_without_mask),
        (check_padding_is_not_read, cross_attention_without_mask),
        (check_every_real_source_token_is_read, mask_of_the_other_polarity),
        (check_every_real_source_token_is_read, one_source_for_all),
    ],
)
def test_the_check_fails_where_the_wrong_things_reach_an_output(check, breakage, monkeypatch):
    model = new_model()
    breakage(model, monkeypatch)
    with pytest.raises(AssertionError):
        check(model)


@pytest.mark.parametrize(
    "block",
    [
        {"position": "sinusoidal"},
        {"position": "learned", "max_length": 7},
        {"position": "rotary", "num_heads": 2},
        {"position": "relative", "order": "post"},
        {"position": "none", "num_kv_heads": 1},
        {"score": "gaussian"},
        {"score": "additive", "norm": "rms", "activation": "swiglu"},
    ],
    ids=lambda block: "-".join(map(str, block.values())),
)
@torch.inference_mode()
def test_decoding_step_by_step_equals_the_whole_at_every_step(block):
    check_steps(new_model(**block).eval())


def nobody_is_reordered(monkeypatch):
    monkeypatch.setattr(CachedState, "reorder", lambda self, parents: None)


def positions_start_again(monkeypatch):
    forward = TokenEmbedding.forward
    monkeypatch.setattr(TokenEmbedding, "forward", lambda self, ids, offset=0: forward(self, ids))


def memory_stays_with_the_first(monkeypatch):
    keep = CachedState.keep

    def broken(self, sentences):
        memory = self.memory
        keep(self, sentences)
        self.memory = memory.keep(torch.arange(len(sentences)))

    monkeypatch.setattr(CachedState, "keep", broken)


def cache_stays_with_the_first(monkeypatch):
    def broken(self, sentences):
        self.memory = self.memory.keep(sentences)
        self.cache.keep(torch.arange(len(sentences)))

    monkeypatch.setattr(CachedState, "keep", broken)


def memory_without_mask(monkeypatch):
    step = CachedState.step

    def broken(self, tokens):
        self.memory = self.memory._replace(mask=None)
        return step(self, tokens)

    monkeypatch.setattr(CachedState, "step", broken)


@pytest.mark.parametrize(
    "breakage",
    [
        nobody_is_reordered,
        positions_start_again,
        memory_stays_with_the_first,
        cache_stays_with_the_first,
        memory_without_mask,
    ],
)
@torch.inference_mode()
def test_the_check_fails_where_a_step_goes_wrong(breakage, monkeypatch):
    breakage(monkeypatch)
    with pytest.raises(AssertionError):
        check_steps(new_model().eval())


@pytest.mark.parametrize(
    ("config", "given", "choices"),
    [
        (BlockConfig, {"position": "alibi"}, "sinusoidal, learned, rotary, relative, none"),
        (BlockConfig, {"activation": "tanh"}, "relu, gelu, gelu_tanh, swiglu"),
        (BlockConfig, {"score": "dotty"}, "scaled_dot, dot, additive, bilinear, cosine, gaussian"),
        (BlockConfig, {"order": "Pre"}, "post, pre"),
        (BlockConfig, {"norm": "batch"}, "layer, rms"),
        (SearchConfig, {"length_penalty": "avg"}, "none, average, gnmt"),
        (SearchConfig, {"stop": "best"}, "first_k, best_possible"),
    ],
)
def test_a_name_that_is_none_of_the_choices_means_no_other_one(config, given, choices):
    ((name, value),) = given.items()
    with pytest.raises(ValueError, match=f"{name}='{value}' is unknown: choose among {choices}"):
        config(**given)
