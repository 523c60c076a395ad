"""Decoding step by step, held against the whole: for every kind of model that translates."""

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tasks.translation.model import EncoderDecoder
from transformer_core.search import DecoderState


def all_logits(model: nn.Module, source: Tensor, mask: Tensor | None, target: Tensor) -> Tensor:
    hidden, weight = model(source, mask, target, torch.arange(target.numel()))
    return (hidden @ weight.T).view(*target.shape, -1)


def check_steps_equal_the_whole(model: EncoderDecoder, source: Tensor, mask: Tensor, pieces: int) -> None:
    """Six steps of four hypotheses for each of three ragged sentences; then the last takes the place of the second."""
    beams = 4
    state = model.start(source, mask, beams=beams, capacity=6)
    assert isinstance(state, DecoderState)
    history = torch.empty(3 * beams, 0, dtype=torch.long)
    for step in range(6):
        tokens = torch.randint(4, pieces, (len(history),))
        history = torch.cat([history, tokens[:, None]], 1)
        whole = all_logits(model, source.repeat_interleave(beams, 0), mask.repeat_interleave(beams, 0), history)
        assert_close(state.step(tokens), whole[:, -1], rtol=0, atol=1e-10)
        first = torch.arange(len(source)).repeat_interleave(beams) * beams
        parents = first + torch.randint(beams, (len(first),))
        state.reorder(parents)
        history = history[parents]
        if step == 2:
            kept = torch.tensor([0, 2])
            state.keep(kept)
            source, mask, history = source[kept], mask[kept], history.view(3, beams, -1)[kept].flatten(0, 1)
