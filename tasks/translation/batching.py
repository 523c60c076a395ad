"""The order of the data: which examples an epoch shows, and which of them share a micro-batch.

Everything is a pure function of its arguments, works on whole arrays and does not know how many processes there are.
An example is its row in the data set; arrays of lengths and of corpus numbers have one entry per row.
"""

from collections.abc import Sequence

import numpy as np

from tasks.errors import InputError

# The last entry of a key keeps the two functions from drawing the same numbers for the same seed.
CORPORA, BATCHES = 1, 2


def epoch_examples(
    kept: np.ndarray, corpus: np.ndarray, weights: Sequence[float], *, seed: int, epoch: int
) -> np.ndarray:
    """Choose the examples that an epoch shows when corpora weigh differently.

    `kept` are the rows that may be shown, `corpus` the number of the corpus of every row, `weights` one number per
    corpus: how many times an epoch goes through it. The rows of a corpus lie in one shuffled circle, and every epoch
    goes on where the one before it stopped, so 1.0 shows each row once, 2.0 twice, and 0.5 one half and then the other.
    The result is in no useful order; `plan_batches` makes one.
    """
    shown = []
    for number, weight in enumerate(weights):
        rows = kept[corpus[kept] == number]
        begin, end = (round(epochs * weight * len(rows)) for epochs in (epoch, epoch + 1))
        circle = np.random.default_rng([seed, number, CORPORA]).permutation(rows)
        shown.append(circle[np.arange(begin, end) % max(len(rows), 1)])
    return np.concatenate(shown)


def plan_batches(
    source_lengths: np.ndarray,
    target_lengths: np.ndarray,
    *,
    examples: np.ndarray,
    tokens: int,
    seed: int,
    epoch: int,
    window: int = 50_000,
    shuffle: bool,
) -> list[list[int]]:
    """Gather examples of about the same length into micro-batches, and say in which order they come.

    `examples` are the rows that take part; a row may come more than once. A micro-batch is as large as its padding
    allows: rows times the longest of all its sides is at most `tokens`. Lengths count what the model reads, with its
    end marks.

    Shuffled, the examples are permuted by (seed, epoch), sorted by length within each `window` of them and cut, and
    then the micro-batches of the whole epoch are permuted. A larger window pads less; a smaller one mixes more freely.
    Otherwise all are sorted, longest first, so that the first micro-batch needs the most memory; `seed`, `epoch` and
    `window` then change nothing.

    Raises InputError for an example that is longer than `tokens` by itself.
    """
    source, target = np.asarray(source_lengths, np.int64), np.asarray(target_lengths, np.int64)
    longest = np.maximum(source, target)
    _refuse_over_budget(longest, examples, tokens)
    # Within one longest side, what differs is by how much the other is shorter, and on which side. Going through that
    # range up for even lengths and down for odd ones leaves neighbours alike where one length ends and the next begins.
    lean = np.where(longest % 2 == 0, target - source, source - target)

    if not shuffle:
        rows = examples[np.lexsort((lean[examples], -longest[examples]))]
        return _cut(rows, longest[rows], tokens)

    random = np.random.default_rng([seed, epoch, BATCHES])
    order = random.permutation(examples)
    batches: list[list[int]] = []
    for begin in range(0, len(order), window):
        rows = order[begin : begin + window]
        rows = rows[np.lexsort((lean[rows], longest[rows]))]
        batches += _cut(rows, longest[rows], tokens)
    return [batches[index] for index in random.permutation(len(batches))]


def _refuse_over_budget(longest: np.ndarray, examples: np.ndarray, tokens: int) -> None:
    over = examples[longest[examples] > tokens]
    if len(over):
        raise InputError(
            f"example {over[0]} has {longest[over[0]]} tokens on one side, more than --data.tokens={tokens} allows for"
            f" a whole batch ({len(over)} such examples): give --data.tokens={longest[over].max()} or more, or filter"
            " out longer sentences."
        )


def _cut(rows: np.ndarray, longest: np.ndarray, tokens: int) -> list[list[int]]:
    """Cut rows, in their order, into the largest batches that fit; `longest` is the longer side of each."""
    longest = np.maximum(longest, 1)
    batches: list[list[int]] = []
    begin = 0
    while begin < len(rows):
        # The longest so far never shrinks, so a batch has at most as many rows as its first one would allow alone.
        so_far = np.maximum.accumulate(longest[begin : begin + tokens // longest[begin]])
        padded = so_far * np.arange(1, len(so_far) + 1)
        end = begin + int(np.searchsorted(padded, tokens, side="right"))
        batches.append(rows[begin:end].tolist())
        begin = end
    return batches
