"""Text to ids and back, by subwords: sentencepiece with fixed special ids and its silent traps closed."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Literal, Self

import sentencepiece

from tasks.errors import InputError
from tasks.translation.segmentation import MergeDropout, Segmenter, SubwordRegularization
from tasks.writing import whole

PAD, UNK, BOS, EOS = 0, 1, 2, 3
SPECIAL_PIECES = ("<pad>", "<unk>", "<s>", "</s>")

# sentencepiece keeps this character for itself and drops, without a word, every training line that holds it.
RESERVED_CHARACTER = "\u2585"


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """How text is cut into subwords."""

    size: int = 8_000
    """Number of pieces with the special ones, the symbols and the 256 bytes of `byte_fallback`."""
    algorithm: Literal["bpe", "unigram"] = "bpe"
    """Byte pair encoding (Sennrich et al. 2016), or a unigram language model (Kudo 2018)."""
    joint: bool = True
    """One vocabulary for both sides, which lets their embeddings be tied; otherwise one of `size` for each."""
    byte_fallback: bool = True
    """Spell a character that is not in the vocabulary by its UTF-8 bytes; otherwise it becomes unknown."""
    split_digits: bool = False
    """Make each digit a piece of its own; numbers that have to be copied are learned much sooner so."""
    character_coverage: float = 1.0
    """Share of the characters of the text that get a piece, 0.98 to 1; 0.9995 suits Chinese and Japanese."""
    normalization: Literal["nmt_nfkc", "nmt_nfkc_cf", "identity"] = "nmt_nfkc"
    """Unicode NFKC and single blanks, the same with case folded, or every character as it is."""
    symbols: tuple[str, ...] = ()
    """Further pieces that no text can spell, such as a tag per language; look up their ids in `Vocabulary.pieces`."""
    sentences: int = 2_000_000
    """Most sentences to train it on, drawn evenly from all of the text; 0: all, with 350 bytes of memory for each."""
    dropout: float = 0.0
    """Noise in the segmentation of training text, drawn anew each epoch; 0 is off, 0.1 is usual.

    For bpe the share of merges left out (BPE-dropout, Provilkov et al. 2020). For unigram the exponent on the
    probabilities of segmentations (subword regularisation, Kudo 2018), so that less is more noise.
    """
    source_model: str | None = None
    """A sentencepiece file to use for the source, or for both sides if `joint`, instead of training one, made with
    --pad_id=0 --unk_id=1 --bos_id=2 --eos_id=3. A relative path starts where the program does."""
    target_model: str | None = None
    """A sentencepiece file to use for the target; needs `joint` off."""

    def __post_init__(self) -> None:
        if self.size <= len(SPECIAL_PIECES):
            raise ValueError(
                f"--data.vocabulary.size={self.size}: give more than {len(SPECIAL_PIECES)}, usually thousands."
            )
        if self.sentences < 0:
            raise ValueError(f"--data.vocabulary.sentences={self.sentences}: give 1 or more, or 0 for all.")
        if not 0.98 <= self.character_coverage <= 1:
            raise ValueError(
                f"--data.vocabulary.character_coverage={self.character_coverage}: give a share from 0.98 to 1."
            )
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"--data.vocabulary.dropout={self.dropout}: give a number from 0 to 1, for example 0.1.")
        if spelt := [symbol for symbol in self.symbols if re.fullmatch("<0x[0-9A-F]{2}>", symbol)]:
            raise ValueError(f"--data.vocabulary.symbols={spelt} are pieces for bytes: choose other names.")
        pieces = [*SPECIAL_PIECES, *self.symbols]
        if "" in pieces or len(set(pieces)) < len(pieces):
            raise ValueError(
                f"--data.vocabulary.symbols={list(self.symbols)}: give each once, none empty, none of {SPECIAL_PIECES}."
            )
        if self.joint and self.target_model is not None:
            raise ValueError(
                f"--data.vocabulary.target_model={self.target_model} needs --data.vocabulary.joint=false;"
                " a joint vocabulary is given by --data.vocabulary.source_model alone."
            )


class Vocabulary:
    """A trained subword vocabulary: text to ids and back.

    `model` is the content of a sentencepiece file whose special ids are those of this module; raises ValueError
    otherwise. Decoding inverts encoding up to the normalization the vocabulary was trained with. Under "identity" with
    byte fallback that is exact for any text, save that the word mark of sentencepiece, U+2581, comes back as a blank.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        if not model:
            raise ValueError("the file is empty, not a sentencepiece model: give another one, or train it again.")
        try:
            self._processor.load_from_serialized_proto(model)
        except RuntimeError as error:
            raise ValueError(
                "this is no sentencepiece model, or a damaged one: give another, or train it again."
            ) from error
        found = tuple(getattr(self._processor, f"{name}_id")() for name in ("pad", "unk", "bos", "eos"))
        if found != (PAD, UNK, BOS, EOS):
            raise ValueError(
                f"the ids of pad, unk, bos and eos are {found} and have to be {(PAD, UNK, BOS, EOS)}:"
                " train it with --pad_id=0 --unk_id=1 --bos_id=2 --eos_id=3."
            )
        self.pieces: list[str] = self._processor.id_to_piece(list(range(len(self._processor))))
        # What a text can spell; with the others among them, `sample` could be talked into special ids.
        self._ids = {
            piece: id
            for id, piece in enumerate(self.pieces)
            if not (self._processor.is_unknown(id) or self._processor.is_control(id) or self._processor.is_byte(id))
        }
        self._byte_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        self._segmenter = self._new_segmenter()

    def _new_segmenter(self) -> Segmenter:
        scores = {piece: self._processor.get_score(id) for piece, id in self._ids.items()}
        try:
            self._processor.nbest_encode("", nbest_size=2)
        except RuntimeError:  # the only way to tell the kind of a model: this takes a unigram model
            return MergeDropout(scores)
        return SubwordRegularization(scores)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a sentencepiece file; raises InputError, naming the file, where it cannot serve."""
        try:
            return cls(Path(path).read_bytes())
        except OSError as error:
            raise InputError(f"{path}: the vocabulary cannot be read ({error.strerror}): check the path.") from error
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the sentencepiece file. Raises InputError where the disk refuses."""
        with whole(Path(path)) as aside, aside.open("wb") as file:
            file.write(self.model)
            file.flush()
            os.fsync(file.fileno())

    def __len__(self) -> int:
        return len(self.pieces)

    def __reduce__(self) -> tuple[type[Self], tuple[bytes]]:
        return type(self), (self.model,)

    @property
    def digest(self) -> str:
        """SHA-256 of the file in hexadecimal: pieces, scores and normalization, all that decides on ids.

        sentencepiece loads some damaged files without complaint, so keep this beside whatever was trained on the ids.
        """
        return sha256(self.model).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Cut a text into ids, without begin and end."""
        _refuse_surrogates(text)
        return self._processor.encode(text)

    def encode_all(self, texts: Iterable[str]) -> list[list[int]]:
        """Cut many texts into ids at once, on all cores."""
        texts = list(texts)
        for text in texts:
            _refuse_surrogates(text)
        return self._processor.encode(texts)

    def sample(self, text: str, dropout: float, seed: int | str) -> list[int]:
        """Cut a text into ids at random, the same ones for the same seed in every thread, process and run.

        See `VocabularyConfig.dropout`; at 0 this is `encode`. Give every epoch and example a seed of its own.
        """
        if dropout == 0:
            return self.encode(text)
        _refuse_surrogates(text)
        ids: list[int] = []
        for piece in self._segmenter.sample(self._processor.normalize(text), dropout, Random(str(seed))):
            ids += [self._ids[piece]] if piece in self._ids else [self._byte_ids[byte] for byte in piece.encode()]
        # Without byte pieces all bytes are unknown, and sentencepiece writes one such id for a whole run of them.
        return [id for before, id in pairwise([PAD, *ids]) if not before == id == UNK]

    def decode(self, ids: Sequence[int]) -> str:
        """Join ids to a text; pad, begin and end are skipped, and bytes that are no character become U+FFFD."""
        return self._processor.decode(list(ids))


def train_vocabulary(sentences: Iterable[str], config: VocabularyConfig, path: str | Path) -> Vocabulary:
    """Train a vocabulary on sentences, in one pass, and write it to `path`.

    The same sentences give the same file, byte for byte. Raises InputError for a sentence that holds a line break, NUL
    or a lone surrogate, for no text at all, and for a size that does not fit the text.
    """
    written = BytesIO()
    faults: list[BaseException] = []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_checked(sentences, faults),
            model_writer=written,
            model_type=config.algorithm,
            vocab_size=config.size,
            byte_fallback=config.byte_fallback,
            split_digits=config.split_digits,
            character_coverage=config.character_coverage,
            normalization_rule_name=config.normalization,
            remove_extra_whitespaces=config.normalization != "identity",
            control_symbols=list(config.symbols),
            pad_id=PAD,
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            max_sentence_length=2**30,  # bytes, the most it takes; longer lines would be dropped without a word
            num_threads=1,  # the scores depend on the number of threads
            minloglevel=2,
        )
    except RuntimeError as error:
        if faults:
            raise faults[0] from None
        raise _explained(error, config) from error
    vocabulary = Vocabulary(written.getvalue())
    vocabulary.save(path)
    return vocabulary


def _checked(sentences: Iterable[str], faults: list[BaseException]) -> Iterator[str]:
    """Pass on what may be trained on; leave in `faults` what is raised, since C++ turns it into a RuntimeError."""
    try:
        for number, text in enumerate(sentences, start=1):
            _refuse_surrogates(text, f"sentence {number} of the text for the vocabulary")
            if found := re.search(r"[\n\0]", text):
                raise InputError(
                    f"sentence {number} of the text for the vocabulary holds U+{ord(found[0]):04X} at character"
                    f" {found.start() + 1}, where a sentence has to be one line of text: {_shown(text)}"
                )
            if text.strip():
                yield text.replace(RESERVED_CHARACTER, " ")
    except (Exception, KeyboardInterrupt) as error:
        faults.append(error)
        raise


def _refuse_surrogates(text: str, place: str = "the text") -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place} holds half of a character (a lone surrogate) at character {error.start + 1}:"
            f" write it as UTF-8: {_shown(text)}"
        ) from None


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:60] + "...")


def _explained(error: RuntimeError, config: VocabularyConfig) -> Exception:
    """Say in our flags what sentencepiece says in its own; what is not the user's to mend stays as it is."""
    message, size = str(error), f"--data.vocabulary.size={config.size}"
    if "sentences_.empty()" in message or "all_chars_count" in message:
        return InputError("there is no text to train a vocabulary on: every sentence is empty or blank.")
    if largest := re.search(r"too high .*<= (\d+)", message):
        return InputError(
            f"{size} is more than the text can fill: give --data.vocabulary.size={largest[1]}, the largest possible,"
            " or less, or more text."
        )
    if smallest := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return InputError(
            f"{size} has no room for the characters of the text: give --data.vocabulary.size={smallest[1]} or more,"
            " or a lower --data.vocabulary.character_coverage."
        )
    return error
