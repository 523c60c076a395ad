"""A recurrent model through the programs: trained, continued, loaded, and refused where only a Transformer will do."""

import json

import pytest
import yaml

from recipes import show_attention, train_translation
from recipes.config import launch, load_config
from recipes.runs import load
from tasks.translation.recurrent import RecurrentModel
from transformer_core.packing import has_bfloat16
from transformer_core.search import SearchConfig

pytestmark = pytest.mark.usefixtures("as_in_a_new_process")


@pytest.fixture
def run(trained, tmp_path):
    """A run folder of a small model with attention, after some updates."""
    folder = tmp_path / "run"
    settings = "--model.kind recurrent --model.recurrent.dim 32 --model.recurrent.dropout 0.0 --train.steps 100"
    arguments = [*trained.arguments[:-1], str(folder), *settings.split(), "--train.evaluate_every", "50"]
    launch(train_translation.Recipe, train_translation.main, arguments)
    return folder


def test_a_recurrent_run_is_trained_loaded_and_scored_alike(run, trained, capsys):
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    metrics = report["results"][report["chosen"]]["valid"]
    assert metrics["bleu"] > 30
    translator = load(run, search=SearchConfig(beams=1))
    assert isinstance(translator.models[0], RecurrentModel)
    found = translator.translate(trained.sentences("valid.en"))
    equal = [text == wanted for text, wanted in zip(found, trained.sentences("valid.de"), strict=True)]
    assert sum(equal) / len(equal) == pytest.approx(metrics["exact"]) and sum(equal) > 5
    for precision in ("bf16", "int8") if has_bfloat16() else ("int8",):
        assert len(load(run, precision=precision).translate(["red dog", "", "bridge"])) == 3
    with pytest.raises(SystemExit):
        launch(show_attention.Recipe, show_attention.main, [str(run), "--text", "red dog"])
    assert "is a recurrent model: pictures are drawn of Transformers" in capsys.readouterr().err


def test_a_run_from_before_there_was_a_choice_is_a_transformer(trained, tmp_path):
    settings = yaml.safe_load((trained.folder / "recipe.yaml").read_text(encoding="utf-8"))
    del settings["model"]["kind"], settings["model"]["recurrent"]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    new, old = (load_config(train_translation.Recipe, folder / "recipe.yaml") for folder in (trained.folder, tmp_path))
    assert old == new and old.model.kind == "transformer"
