"""Run folders of translators: what `train_translation` leaves behind, ready for use."""

from collections.abc import Sequence
from pathlib import Path

import torch

from recipes import checkpoint
from recipes.config import load_config
from recipes.ladder import MODEL
from recipes.train_translation import Recipe
from recipes.weights import load_tensors_into
from tasks.errors import InputError
from tasks.translation.model import TranslationModel
from tasks.translation.pairs import saved_vocabularies
from tasks.translation.translator import Translator
from tasks.translation.vocabulary import PAD
from transformer_core.search import SearchConfig


def load(run: str | Path, *, weights: Sequence[str | Path] = (), search: SearchConfig | None = None) -> Translator:
    """Load a translator from its run folder, on the GPU if there is one.

        from recipes.runs import load
        translator = load("runs/demo")
        print(translator("The meeting is on March 3, 2027."))

    `weights` are .safetensors files or checkpoint folders instead of the final model; several make an ensemble.
    Raises InputError where the folder is not a finished run.
    """
    folder, recipe = Path(run), recipe_of(run)
    source, target = saved_vocabularies(recipe.data, folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = []
    for path in [Path(name) for name in weights] or [folder / MODEL]:
        model = TranslationModel(recipe.model, len(source), len(target), pad_id=PAD)
        _load_weights(model, path)
        models.append(model.to(device))
    return Translator(models, source, target, search=search or recipe.search, max_length=recipe.data.filter.max_length)


def recipe_of(run: str | Path) -> Recipe:
    """Return the configuration that a run was trained with. Raises InputError where the folder holds none."""
    path = Path(run, "recipe.yaml")
    if not path.exists():
        raise InputError(f"{run} is no run folder: it has no recipe.yaml. Train first, or name another folder.")
    return load_config(Recipe, path)


def _load_weights(model: TranslationModel, path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path} does not exist: the run has not ended, or choose --weights among its checkpoints.")
    if path.is_dir():
        saved = checkpoint.load(path).tensors
        tensors = saved.get("ema", saved["model"])
    else:
        tensors = checkpoint.read_tensors(path)
    try:
        load_tensors_into(model, tensors)
    except InputError as error:
        raise InputError(f"{path} does not hold the weights of this run: {error}") from None
