"""Draw where a trained translator looks: one picture of its attention from each piece of the translation to the source.

python -m recipes.show_attention runs/demo --text "The meeting is on March 3, 2027 at 4:30 PM." --output map.png
"""

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from recipes.config import launch
from recipes.pictures import save_picture
from recipes.runs import load
from tasks.errors import InputError
from tasks.translation.model import TranslationModel
from tasks.translation.task import collate
from tasks.translation.translator import Translator
from tasks.translation.vocabulary import Vocabulary
from transformer_core import record_attention


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Draw the attention of a translator over one sentence."""

    run: str
    """Run folder of train_translation."""
    text: str
    """The sentence to translate."""
    output: str = "attention.png"
    """Picture to write; the ending chooses its kind: .png, .svg, .pdf."""
    layer: int = -1
    """Decoder layer, counted from 0; -1 is the last."""


def main(recipe: Recipe) -> None:
    """Translate the sentence and draw the mean over the heads of one layer."""
    translator = load(recipe.run)
    model = translator.models[0]
    if not isinstance(model, TranslationModel):
        raise InputError(f"{recipe.run} is a recurrent model: pictures are drawn of Transformers, so name another run.")
    depth = len(model.decoder.blocks)
    if not -depth <= recipe.layer < depth:
        raise InputError(f"--layer {recipe.layer} is not there: the decoder has {depth} layers, 0 to {depth - 1}.")
    translation = translator(recipe.text)
    source = translator.source.encode(recipe.text)[: translator.max_length]
    target = translator.target.encode(translation)
    weights = cross_attention(translator, source, target, recipe.layer % depth).mean(0)
    draw(weights, pieces(translator.source, source), pieces(translator.target, target), recipe.output)
    print(translation)


@torch.inference_mode()
def cross_attention(translator: Translator, source: list[int], target: list[int], layer: int) -> Tensor:
    """Return the weights of one decoder layer, (heads, target pieces and end mark, source pieces and end mark)."""
    batch = collate([0], [source], [target]).to(translator.device)
    model = translator.models[0]
    with record_attention(model) as maps:
        model(batch.source, batch.mask, batch.target, batch.positions)
    return maps[f"decoder.blocks.{layer}.cross_attention"][0][0].float().cpu()


def pieces(vocabulary: Vocabulary, ids: list[int]) -> list[str]:
    """Spell pieces and the end mark, to label an axis with."""
    return [vocabulary.pieces[piece].replace("▁", "_") for piece in ids] + ["end"]


def draw(weights: Tensor, source: list[str], target: list[str], path: str) -> None:
    """Write a picture of the weights, (target, source), darker for more."""
    figure = Figure(figsize=(2 + 0.35 * len(source), 1.5 + 0.3 * len(target)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(weights.numpy(), cmap="Blues", vmin=0.0, aspect="auto")
    axes.set_xticks(range(len(source)), source, rotation=60, ha="right", parse_math=False)
    axes.set_yticks(range(len(target)), target, parse_math=False)
    axes.set_xlabel("source")
    axes.set_ylabel("translation")
    save_picture(figure, path, dpi=130)


if __name__ == "__main__":
    launch(Recipe, main)
