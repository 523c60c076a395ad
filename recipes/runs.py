"""Run folders of translators: what `train_translation` leaves behind, ready for use."""

from collections.abc import Sequence
from pathlib import Path

import torch

from recipes.config import recipe_of
from recipes.ladder import MODEL
from recipes.train_translation import Recipe
from recipes.weights import load_weights
from tasks.errors import InputError
from tasks.translation.model import make_model
from tasks.translation.pairs import JOINT, SOURCE, TARGET, saved_vocabularies
from tasks.translation.shortlist import Shortlist
from tasks.translation.task import check_positions
from tasks.translation.translator import Translator
from tasks.translation.vocabulary import PAD
from transformer_core.packing import Precision
from transformer_core.search import SearchConfig


def load(
    run: str | Path,
    *,
    weights: str | Path | Sequence[str | Path] = (),
    search: SearchConfig | None = None,
    precision: Precision = "fp32",
    workers: int = 1,
    shortlist: bool = False,
) -> Translator:
    """Load a translator from its run folder, on the GPU if there is one.

        from recipes.runs import load
        translator = load("runs/demo")
        print(translator("The meeting is on March 3, 2027."))

    `weights` are .safetensors files or checkpoint folders instead of the final model; several make an ensemble.
    `precision` and `workers` are those of `Translator`; `shortlist` uses what make_shortlist has left in the folder.
    Raises InputError where the folder is not a finished run, or has learned too few positions for the search.
    """
    folder, recipe = Path(run), recipe_of(Recipe, run)
    check_positions(recipe.data, recipe.model, search or recipe.search)
    source, target = saved_vocabularies(recipe.data, folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = []
    weights = [weights] if isinstance(weights, str | Path) else weights
    for path in [Path(name) for name in weights] or [folder / MODEL]:
        check_vocabularies(folder, path)
        model = make_model(recipe.model, len(source), len(target), pad_id=PAD)
        load_weights(model, path)
        models.append(model.to(device))
    try:
        return Translator(
            models,
            source,
            target,
            search=search or recipe.search,
            max_length=recipe.data.filter.max_length,
            precision=precision,
            workers=workers,
            shortlist=Shortlist.load(folder) if shortlist else None,
        )
    except ValueError as error:
        raise InputError(str(error)) from None


def check_vocabularies(folder: Path, weights: Path) -> None:
    """Raise InputError for weights that lie in a run of other vocabularies: of the same size, they would fit."""
    for name in (JOINT, SOURCE, TARGET):
        own, *others = (place / f"{name}.sha256" for place in (folder, weights.parent, weights.parent.parent))
        for other in filter(Path.exists, others):
            if not own.exists() or own.read_text(encoding="utf-8") != other.read_text(encoding="utf-8"):
                raise InputError(
                    f"{weights} belongs to a run with another {name} than {folder}, where pieces are other words: "
                    "choose weights of runs that share their vocabulary."
                )
