"""One small trained translator for all tests of programs that use one."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState

from recipes import train_translation
from recipes.config import launch

WORDS = {"red": "rot", "dog": "Hund", "house": "Haus", "seven": "sieben", "bridge": "Brücke", "opens,": "öffnet,"}


class Trained(NamedTuple):
    """A run folder with what it was made of."""

    folder: Path
    text: Path
    """Folder of train.en, train.de, valid.en and valid.de."""
    arguments: list[str]
    """What train_translation was given; `--train.out` is the last."""

    def sentences(self, name: str = "valid.en") -> list[str]:
        """The lines of a file."""
        return (self.text / name).read_text(encoding="utf-8").splitlines()


@pytest.fixture
def as_in_a_new_process() -> Iterator[None]:
    """Programs take all cores, and accelerate remembers how it was first started."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def cache_of_this_session(tmp_path_factory) -> Iterator[Path]:
    """Kept text and pieces go where all temporary files go, in child processes too."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, cache_of_this_session) -> Trained:
    """Some seconds of learning to translate six words, with three checkpoints."""
    AcceleratorState._reset_state(reset_partial_state=True)
    text, folder, draw = tmp_path_factory.mktemp("text"), tmp_path_factory.mktemp("runs") / "run", random.Random(1)
    for name, count in (("train", 900), ("valid", 23)):
        rows = [[draw.choice(list(WORDS)) for _ in range(draw.randint(1, 6))] for _ in range(count)]
        for side, lines in (("en", rows), ("de", [[WORDS[word] for word in row] for row in rows])):
            (text / f"{name}.{side}").write_text("".join(f"{' '.join(line)}\n" for line in lines), encoding="utf-8")
    arguments = f"""
        --data.folder {text} --data.vocabulary.size 60 --data.vocabulary.byte_fallback false --data.tokens 800
        --data.filter.max_length 63 --model.block.dim 32 --model.block.num_heads 2 --model.block.hidden_dim 96
        --model.block.dropout 0.0 --model.encoder_depth 1 --model.decoder_depth 1 --loss.smoothing 0 --search.beams 2
        --model.block.position rotary --train.schedule cosine --train.steps 240 --train.lr 1e-2 --train.warmup 10
        --train.evaluate_every 120 --train.save_every 80
        --train.keep_last 3 --train.log_every 30 --train.threads 1 --expected.at_least 60
    """.split()
    arguments += ["--data.train", "[{source: train.en, target: train.de}]"]
    arguments += ["--data.valid", "[{source: valid.en, target: valid.de}]", "--train.out", str(folder)]
    launch(train_translation.Recipe, train_translation.main, arguments)
    return Trained(folder, text, arguments)
