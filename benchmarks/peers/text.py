"""Translation models of several libraries on equal work: one training step, the same batches, shapes and loss.

All have one matrix for both embeddings and the output layer, sines and cosines for positions, biases, and dropout
after the embeddings, on each residual branch, and on attention weights and hidden features if the recipe says so. What
differs:

- torch.nn.Transformer has no embeddings and no output layer: it gets ours, and logits at real targets only.
- transformers computes logits at padding as well and leaves it out of the loss. The model is Marian, or Pegasus, which
  is the same with the norm first.
- x-transformers has no biases in its attention and its norms, and a learned scale of the positions. It is told to use
  the fused kernels of PyTorch, which it does not by itself. It computes logits at padding as well.
- JoeyNMT computes logits at padding as well, attention step by step, and its smoothed targets as a matrix. It asks for
  older packages than the others do and works without them: `pip install --no-deps joeynmt`, then importlib_metadata and
  subword-nmt.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.hugging_face import translation_model
from benchmarks.peers.steps import TrainingStep, compile_blocks
from benchmarks.worker import Setting, Step
from recipes.compiling import compiled
from recipes.train_translation import Recipe
from tasks.translation.model import TranslationModel
from tasks.translation.task import Batch, Translation, collate
from tasks.translation.vocabulary import BOS, EOS, PAD
from transformer_core import sinusoidal_table

LONGEST = 1024
"""Positions that tables are made for."""


@dataclass(frozen=True)
class TextWork:
    """What all train: a recipe, the size of its vocabulary, and for each batch the pieces of both sides."""

    recipe: Recipe
    vocabulary: int
    pieces: list[list[tuple[list[int], list[int]]]]
    device: str = "cpu"
    compiled: bool = False
    """Whether blocks go through torch.compile; then so does the loss of those whose loss is not their own."""

    def batches(self) -> list[Batch]:
        """Return the batches as tensors."""
        sides = [list(zip(*pairs, strict=True)) for pairs in self.pieces]
        made = (collate(list(range(len(source))), source, target) for source, target in sides)
        return [batch.to(torch.device(self.device)) for batch in made]

    def placed(self, model: nn.Module) -> Any:
        """Return a model of somebody else's on the device, with compiled blocks if asked for."""
        if self.compiled:
            compile_blocks(model, dynamic=True)
        return model.to(self.device)

    def step(self, setting: Setting, model: nn.Module, loss: Any) -> TrainingStep[Batch]:
        """Return an update with a loss that is summed over real target tokens."""
        return TrainingStep(setting, model, loss, self.batches(), lambda batch: len(batch.labels))

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum the label-smoothed cross-entropy of (batch, target length, vocabulary) logits over real targets."""
        function = compiled_loss() if self.compiled else smoothed_loss
        return function(logits, padded_labels(batch), self.recipe.loss.smoothing)


def smoothed_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Sum the label-smoothed cross-entropy over the labels that are not PAD."""
    return F.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=PAD, label_smoothing=smoothing, reduction="sum"
    )


@cache
def compiled_loss() -> Callable[[Tensor, Tensor, float], Tensor]:
    """Return `smoothed_loss`, compiled for all shapes."""
    return torch.compile(smoothed_loss, dynamic=True)


def padded_labels(batch: Batch) -> Tensor:
    """Return (batch, target length) labels, PAD where there is none."""
    padded = batch.labels.new_full((batch.target.numel(),), PAD)
    return padded.index_copy(0, batch.positions, batch.labels).view_as(batch.target)


def source_mask(batch: Batch) -> Tensor:
    """Return (batch, source length), True at real pieces."""
    return torch.ones_like(batch.source, dtype=torch.bool) if batch.mask is None else batch.mask[:, 0, 0]


def ours(setting: Setting, work: TextWork) -> Step:
    """Train the translation model of this project."""
    recipe = work.recipe
    task = Translation(recipe.data, recipe.model, recipe.loss, recipe.search, recipe.scores)
    model = TranslationModel(recipe.model, work.vocabulary, work.vocabulary, pad_id=PAD).to(work.device)
    trained = compiled(model, ragged=task.ragged) if work.compiled else model
    return work.step(setting, model, lambda batch: task.loss(trained, batch).total)


class TorchTransformer(nn.Module):
    """torch.nn.Transformer with the embeddings and the output layer of our model."""

    positions: Tensor

    def __init__(self, work: TextWork) -> None:
        super().__init__()
        config, block = work.recipe.model, work.recipe.model.block
        self.smoothing = work.recipe.loss.smoothing
        self.embedding = nn.Embedding(work.vocabulary, block.dim, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=block.dim**-0.5)
        self.register_buffer("positions", sinusoidal_table(LONGEST, block.dim).float())
        self.dropout = nn.Dropout(block.dropout)
        self.transformer = nn.Transformer(
            block.dim,
            block.num_heads,
            config.encoder_depth,
            config.decoder_depth,
            block.hidden_dim,
            block.dropout,
            block.activation,
            batch_first=True,
            norm_first=block.order == "pre",
        )
        for module in self.transformer.modules():  # its one rate of dropout holds everywhere
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = block.attention_dropout
            elif isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
                module.dropout.p = block.hidden_dropout

    def embed(self, ids: Tensor) -> Tensor:
        """Embed (batch, length) tokens with their positions."""
        scale = math.sqrt(self.embedding.embedding_dim)
        return self.dropout(self.embedding(ids) * scale + self.positions[: ids.size(1)])

    def forward(self, batch: Batch) -> Tensor:
        """Return the summed label-smoothed loss of a batch."""
        padding = None if batch.mask is None else ~batch.mask[:, 0, 0]
        states = self.transformer(
            self.embed(batch.source),
            self.embed(batch.target),
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(batch.target.size(1), batch.target.device),
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        logits = states.flatten(0, 1)[batch.positions] @ self.embedding.weight.T
        return F.cross_entropy(logits.float(), batch.labels, label_smoothing=self.smoothing, reduction="sum")


def torch_transformer(setting: Setting, work: TextWork) -> Step:
    """Train torch.nn.Transformer."""
    model = work.placed(TorchTransformer(work))
    return work.step(setting, model, model)


def transformers(setting: Setting, work: TextWork) -> Step:
    """Train Marian or Pegasus of transformers; the loss is that of its trainer, from the logits."""
    model = work.placed(translation_model(work.recipe.model, work.vocabulary, LONGEST))

    def loss(batch: Batch) -> Tensor:
        mask = None if batch.mask is None else source_mask(batch)
        out = model(input_ids=batch.source, attention_mask=mask, decoder_input_ids=batch.target, use_cache=False)
        return work.loss_of(out.logits, batch)

    return work.step(setting, model, loss)


def x_transformers(setting: Setting, work: TextWork) -> Step:
    """Train encoder and decoder of x-transformers."""
    library = import_module("x_transformers")
    config, block = work.recipe.model, work.recipe.model.block
    layers = {
        "dim": block.dim,
        "heads": block.num_heads,
        "pre_norm": block.order == "pre",
        "attn_dim_head": block.dim // block.num_heads,
        "attn_flash": True,
        "attn_dropout": block.attention_dropout,
        "attn_sublayer_dropout": block.dropout,
        "ff_mult": block.hidden_dim / block.dim,
        "ff_custom_activation": nn.ReLU() if block.activation == "relu" else nn.GELU(),
        "ff_dropout": block.hidden_dropout,
        "ff_sublayer_dropout": block.dropout,
    }
    text = {
        "num_tokens": work.vocabulary,
        "max_seq_len": LONGEST,
        "emb_dropout": block.dropout,
        "scaled_sinu_pos_emb": True,
    }
    encoder = library.TransformerWrapper(
        **text, return_only_embed=True, attn_layers=library.Encoder(depth=config.encoder_depth, **layers)
    )
    decoder = library.TransformerWrapper(
        **text,
        token_emb=encoder.token_emb,
        tie_embedding=True,
        attn_layers=library.Decoder(depth=config.decoder_depth, cross_attend=True, **layers),
    )

    encoder, decoder = work.placed(encoder), work.placed(decoder)

    def loss(batch: Batch) -> Tensor:
        mask = None if batch.mask is None else source_mask(batch)
        logits = decoder(batch.target, context=encoder(batch.source, mask=mask), context_mask=mask)
        return work.loss_of(logits, batch)

    return work.step(setting, nn.ModuleList([encoder, decoder]), loss)


def joeynmt(setting: Setting, work: TextWork) -> Step:
    """Train the Transformer of JoeyNMT."""
    layers = import_module("joeynmt.transformer_layers")
    config, block = work.recipe.model, work.recipe.model.block
    names = {"unk": 0, "pad": 1, "bos": BOS, "eos": EOS}  # the order it wants; the first two are swapped below
    marks = {f"{name}_token": f"<{name}>" for name in names} | {f"{name}_id": id for name, id in names.items()}
    words = [str(id) for id in range(len(names), work.vocabulary)]
    settings = SimpleNamespace(**marks, lang_tags=[], sep_token=None)
    vocabulary = import_module("joeynmt.vocabulary").Vocabulary(words, settings)
    side = {
        "type": "transformer",
        "embeddings": {"embedding_dim": block.dim, "scale": True, "dropout": block.dropout},
        "hidden_size": block.dim,
        "ff_size": block.hidden_dim,
        "num_heads": block.num_heads,
        "dropout": block.dropout,
        "layer_norm": block.order,
        "activation": block.activation,
    }
    model = import_module("joeynmt.model").build_model(
        {
            "encoder": side | {"num_layers": config.encoder_depth},
            "decoder": side | {"num_layers": config.decoder_depth},
            "tied_embeddings": True,
            "tied_softmax": True,
        },
        vocabulary,
        vocabulary,
    )
    model.loss_function = ("crossentropy", work.recipe.loss.smoothing)
    for module in model.modules():  # its one rate of dropout holds everywhere
        if isinstance(module, layers.MultiHeadedAttention):
            module.dropout.p = block.attention_dropout
        elif isinstance(module, layers.PositionwiseFeedForward):
            module.pwff_layer[2].p = block.hidden_dropout
    model = work.placed(model)

    def swapped(ids: Tensor) -> Tensor:
        return torch.where(ids < 2, 1 - ids, ids)

    def loss(batch: Batch) -> Tensor:
        labels, mask = padded_labels(batch), source_mask(batch)
        total, *_ = model(
            return_type="loss",
            src=swapped(batch.source),
            src_mask=mask[:, None],
            src_length=mask.sum(1),
            trg_input=swapped(batch.target),
            trg=swapped(labels),
            trg_mask=(labels != PAD)[:, None],
        )
        return total

    return work.step(setting, model, loss)


PEERS: dict[str, tuple[str, Callable[[Setting, TextWork], Step]]] = {
    "transformer_core": ("", ours),
    "torch.nn.Transformer": ("", torch_transformer),
    "transformers": ("transformers", transformers),
    "x-transformers": ("x_transformers", x_transformers),
    "JoeyNMT": ("joeynmt", joeynmt),
}
"""The package that each needs, and what makes its update."""


def training(setting: Setting, name: str, work: TextWork) -> Step:
    """Return the update of a model."""
    return PEERS[name][1](setting, work)
