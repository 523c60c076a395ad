"""Translation with the same trained weights in several tools: token ids in, token ids out.

Each tool gets all sentences at once, sorted by length, tries some batch sizes, and keeps the best. Hypotheses are
ranked by log-probability over length^alpha everywhere, the end counted.

A beam search ends when as many hypotheses are finished as there are beams, and counts a finished one only among the
best `beams` continuations of a step: `stop: first_k` here, `early_stopping=True` in transformers, and `patience=1`, the
default, in CTranslate2. What differs: transformers also gives up where its heuristic says that nothing better can come,
and limits the length of the translations of a batch, not of each sentence; so does CTranslate2. Nobody is asked for
scores.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F

from benchmarks.peers import ctranslate, hugging_face
from benchmarks.peers.steps import precision as precision_of
from benchmarks.worker import Setting
from recipes.config import recipe_of
from recipes.runs import load
from recipes.train_translation import Recipe
from tasks.errors import InputError
from tasks.translation.model import TranslationConfig, TranslationModel
from tasks.translation.task import longest_translation, pad_source
from tasks.translation.vocabulary import BOS, EOS, PAD, UNK
from transformer_core.packing import Precision
from transformer_core.search import SearchConfig

Pieces = list[list[int]]
"""Sentences as ids, without begin and end mark."""
TOKENS = {"cpu": [1024, 2048, 4096, 8192], "cuda": [8192, 32768]}
SENTENCES = {"cpu": [16, 32, 64, 128], "cuda": [128, 512]}
"""Sizes of batches that are tried, in tokens or in sentences."""


@dataclass(frozen=True)
class DecodingWork:
    """What all translate, with the weights of which run."""

    run: str
    sentences: Pieces
    search: SearchConfig

    @property
    def alpha(self) -> float:
        """The exponent of the length."""
        return self.search.alpha if self.search.length_penalty == "average" else 0.0

    @property
    def longest(self) -> int:
        """Pieces that the longest translation may have."""
        return longest_translation(self.longest_source, self.search)

    @property
    def longest_source(self) -> int:
        """Pieces of the longest sentence, with its end mark."""
        return max(map(len, self.sentences)) + 1

    @property
    def positions(self) -> int:
        """Positions that a table needs, with begin and end mark."""
        return max(self.longest, self.longest_source) + 2

    @property
    def config(self) -> TranslationConfig:
        """The shape of the model."""
        return recipe_of(Recipe, self.run).model


class Decoding:
    """Translates all sentences at each call; the units are sentences."""

    def __init__(self, work: DecodingWork, sizes: Sequence[int], translate: Callable[[Pieces, int], Pieces]) -> None:
        self.translate = translate
        self.order = sorted(range(len(work.sentences)), key=lambda row: -len(work.sentences[row]))
        self.sentences = [work.sentences[row] for row in self.order]
        self.output: Pieces = []
        self.translate(self.sentences[:64], sizes[0])  # packs and sets aside what it needs
        self.size = min(sizes, key=self._seconds)
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()

    def _seconds(self, size: int) -> float:
        began = time.perf_counter()
        self.translate(self.sentences, size)
        return time.perf_counter() - began

    def __call__(self) -> float:
        """Translate everything, and keep the best hypotheses in the order of the work."""
        found = self.translate(self.sentences, self.size)
        self.output = [[]] * len(found)
        for row, ids in zip(self.order, found, strict=True):
            self.output[row] = ids
        return len(found)


def ours(setting: Setting, work: DecodingWork, precision: Precision, workers: int) -> Decoding:
    """Translate with this project; `workers` 0 is its own choice."""
    translator = load(work.run, search=work.search, precision=precision, workers=workers)

    def translate(sentences: Pieces, size: int) -> Pieces:
        translator.tokens = size
        return [hypotheses[0].ids for hypotheses in translator.search_ids(sentences, scores=False)]

    return Decoding(work, TOKENS[translator.device.type], translate)


def transformers(setting: Setting, work: DecodingWork, cache: str | None = None) -> Decoding:
    """Translate with `generate` of transformers; a "static" cache gets batches of one shape, as it compiles."""
    mine = trained(work)
    device = mine.output.weight.device
    model = hugging_face.trained_model(mine, work.config, work.positions).to(device)
    if device.type == "cuda" and setting == "bf16":  # narrow weights are quicker there than autocast
        model, setting = model.bfloat16(), "plain"
    settings = import_module("transformers").GenerationConfig(
        num_beams=work.search.beams,
        do_sample=False,
        early_stopping=work.search.beams > 1,
        length_penalty=work.alpha,
        max_new_tokens=work.longest + 1,
        suppress_tokens=[PAD, UNK, BOS],
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
        decoder_start_token_id=BOS,
        cache_implementation=cache,
    )

    @torch.inference_mode()
    def translate(sentences: Pieces, size: int) -> Pieces:
        found: Pieces = []
        for some in chunks(sentences, size):
            count = len(some)
            if cache is not None:
                some = [*some, *[some[-1]] * (size - count)]
            source, mask = pad_source(some)
            real = torch.ones_like(source) if mask is None else mask[:, 0, 0].long()
            if cache is not None:
                source, real = (F.pad(x, (0, work.longest_source - x.size(1)), value=PAD) for x in (source, real))
            with precision_of(setting, device.type):
                out = model.generate(
                    input_ids=source.to(device), attention_mask=real.to(device), generation_config=settings
                )
            rows: Pieces = out[:count, 1:].tolist()
            found += [ids[: ids.index(EOS)] if EOS in ids else ids for ids in rows]
        return found

    return Decoding(work, [256] if cache is not None else SENTENCES[device.type], translate)


def ctranslate2(setting: Setting, work: DecodingWork, precision: str, workers: int, threads: int) -> Decoding:
    """Translate with CTranslate2: `workers` translators of `threads` threads each."""
    model = trained(work)
    with TemporaryDirectory() as folder:
        ctranslate.save(model, work.config, work.positions, Path(folder))
        translator = import_module("ctranslate2").Translator(
            folder, compute_type=precision, inter_threads=workers, intra_threads=threads
        )
    names = ctranslate.piece_names(model.output.out_features)

    def translate(sentences: Pieces, size: int) -> Pieces:
        out = translator.translate_batch(
            [[names[id] for id in (*ids, EOS)] for ids in sentences],
            beam_size=work.search.beams,
            length_penalty=work.alpha,
            max_decoding_length=work.longest + 1,
            max_batch_size=size,
            batch_type="tokens",
            suppress_sequences=[[names[PAD]], [names[BOS]]],
            disable_unk=True,
        )
        return [[int(name) for name in each.hypotheses[0]] for each in out]

    return Decoding(work, TOKENS["cpu"], translate)


def trained(work: DecodingWork) -> TranslationModel:
    """Return the model of the run. Raises InputError where it is none that the peers know."""
    model = load(work.run).models[0]
    if not isinstance(model, TranslationModel):
        raise InputError(f"{work.run} is a recurrent model, and the peers know Transformers only: name another run.")
    return model


def chunks(sentences: Pieces, size: int) -> Iterator[Pieces]:
    """Cut a list."""
    for begin in range(0, len(sentences), size):
        yield sentences[begin : begin + size]
