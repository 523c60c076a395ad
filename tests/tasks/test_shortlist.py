"""A shortlist names the pieces that are likely; searching among them finds what searching among all would."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from tasks.errors import InputError
from tasks.translation.model import TranslationConfig, TranslationModel
from tasks.translation.shortlist import Shortlist, count_shortlist
from tasks.translation.task import decode, pad_source
from tasks.translation.vocabulary import BOS, EOS, PAD, UNK
from transformer_core import BlockConfig, CachedState
from transformer_core.packing import pack
from transformer_core.search import SearchConfig

FIRST = 4
"""Pieces before it are marks."""


def corpus(count: int = 300, pieces: int = 40) -> list[tuple[list[int], list[int]]]:
    """Source piece p goes with target piece p + 1, and with one that is everywhere."""
    draw = np.random.default_rng(3)
    sources = [draw.integers(FIRST, pieces - 1, draw.integers(1, 9)).tolist() for _ in range(count)]
    return [(source, [FIRST, *(piece + 1 for piece in source)]) for source in sources]


def test_partners_are_those_with_the_largest_dice_coefficient():
    pairs = corpus()
    shortlist = count_shortlist(pairs, (40, 40), frequent=3, each=2)
    alone = [Counter(piece for pair in pairs for piece in set(pair[side])) for side in (0, 1)]
    met = Counter((a, b) for source, target in pairs for a in set(source) for b in set(target))
    for piece in alone[0]:
        scores = {b: 2 * n / (alone[0][piece] + alone[1][b]) for (a, b), n in met.items() if a == piece}
        best = sorted(scores, key=lambda b: (-scores[b], b))[:2]
        assert shortlist.partners[piece].tolist() == best and best[0] == piece + 1
    assert FIRST in shortlist.frequent and len(shortlist.frequent) == 3
    assert sorted(alone[1], key=lambda b: -alone[1][b])[0] in shortlist.frequent


def test_many_pairs_are_counted_as_few():
    pairs = corpus() * 40  # more than are counted at once
    many, few = (count_shortlist(some, (40, 40), frequent=3, each=4) for some in (pairs, corpus()))
    assert (many.partners == few.partners).all() and (many.frequent == few.frequent).all()


def test_candidates_are_what_the_batch_asks_for_the_marks_and_what_is_given():
    shortlist = Shortlist(np.array([20, 9]), np.full((40, 2), EOS))
    shortlist.partners[7] = 11, 30
    source = torch.tensor([[7, 7, EOS], [5, EOS, PAD]])
    assert shortlist.pieces(source, also=[33]).tolist() == sorted({PAD, UNK, BOS, EOS, 9, 20, 11, 30, 33})


def test_a_shortlist_is_kept_in_the_run_folder_and_missed_where_it_is_not(tmp_path):
    made = count_shortlist(corpus(), (40, 40), frequent=3, each=2)
    with pytest.raises(InputError, match="make it with `python -m recipes.make_shortlist"):
        Shortlist.load(tmp_path)
    made.save(tmp_path)
    loaded = Shortlist.load(tmp_path)
    assert (loaded.partners == made.partners).all() and (loaded.frequent == made.frequent).all()


@pytest.fixture(scope="module")
def model() -> TranslationModel:
    torch.manual_seed(4)
    block = BlockConfig(dim=16, num_heads=2, hidden_dim=24, dropout=0.0)
    config = TranslationConfig(block=block, encoder_depth=1, decoder_depth=1)
    return TranslationModel(config, 40, 40, pad_id=PAD).eval()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_searching_among_candidates_equals_banning_all_others(model, beams, packed, monkeypatch):
    if packed and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    used = pack(model, "fp32") if packed else model
    allowed = [5, 8, 13, 21, 34]
    shortlist = Shortlist(np.array(allowed), np.full((40, 1), EOS))
    source, mask = pad_source([[6, 9, 30], [12]])
    config = SearchConfig(beams=beams, n_best=beams, max_length=7)
    prefix = [[39], []]
    found = decode([used], source, mask, config, [0, 1], prefix, shortlist=shortlist)

    def narrow(self, tokens):
        logits = original(self, tokens)
        keep = torch.zeros(40, dtype=torch.bool)
        keep[[PAD, UNK, BOS, EOS, 39, *allowed]] = True
        return logits.masked_fill(~keep, -torch.inf)

    original = CachedState.step
    monkeypatch.setattr(CachedState, "step", narrow)
    expected = decode([model], source, mask, config, [0, 1], prefix)
    for one, other in zip(found, expected, strict=True):
        assert [each.ids for each in one] == [each.ids for each in other]
        assert [each.score for each in one] == pytest.approx([each.score for each in other], rel=1e-4)
    assert found[0][0].ids[0] == 39 and not math.isnan(found[0][0].score)
    assert {id for each in found for one in each for id in one.ids} <= {39, *allowed}
