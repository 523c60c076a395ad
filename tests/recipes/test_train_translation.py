"""The training program: what it leaves in the run folder, and that this is the model that was trained."""

import json
import math
import pickle
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from recipes import checkpoint, state, train_images, train_recognition, train_translation
from recipes.config import launch, load_config, read
from recipes.runs import load
from recipes.state import State
from recipes.weights import load_tensors_into
from tasks.errors import InputError
from tasks.translation.evaluate import ScoreConfig, score
from tasks.translation.model import TranslationModel
from tasks.translation.pairs import saved_vocabularies
from tasks.translation.task import collate
from tasks.translation.vocabulary import PAD
from transformer_core.search import SearchConfig

pytestmark = pytest.mark.usefixtures("as_in_a_new_process")
RECIPES = Path(__file__).parents[2] / "recipes"


def train(*arguments: str) -> None:
    launch(train_translation.Recipe, train_translation.main, arguments)


def test_the_run_folder_holds_all_that_a_translator_needs(trained):
    names = {path.name for path in trained.folder.iterdir()}
    assert names >= {"recipe.yaml", "vocabulary.model", "model.safetensors", "report.json", "metrics.jsonl"}
    assert [path.name for path in sorted((trained.folder / "checkpoints").iterdir())] == [
        "step-00000120",
        "step-00000160",
        "step-00000240",
    ]


def test_nothing_in_the_run_folder_is_pickled(trained, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("something was unpickled")

    for path in trained.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"))
            assert path.suffix not in (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse)
    load(trained.folder)("red dog")


def test_the_kept_configuration_is_the_one_that_was_given(trained):
    assert load_config(train_translation.Recipe, trained.folder / "recipe.yaml") == read(
        train_translation.Recipe, trained.arguments
    )


def test_it_has_learned_and_says_so(trained):
    report = json.loads((trained.folder / "report.json").read_text(encoding="utf-8"))
    metrics = report["results"][report["chosen"]]["valid"]
    assert metrics["bleu"] > 60 and metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert report["scores"][0].startswith("BLEU|") and f"= {metrics['bleu']:.2f}" in report["scores"][0]
    lines = [json.loads(line) for line in (trained.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == sorted(steps) and steps[-1] == 240
    assert {"train/nll", "train/lr", "train/grad_norm", "train/tokens_per_second", "train/waiting"} <= set(lines[0])
    assert [line["step"] for line in lines if "valid/bleu" in line] == [120, 240]


def test_the_reported_score_is_that_of_what_the_translator_writes(trained):
    report = json.loads((trained.folder / "report.json").read_text(encoding="utf-8"))
    greedy = load(trained.folder, search=SearchConfig(beams=1))
    scores = score(greedy.translate(trained.sentences("valid.en")), trained.sentences("valid.de"), ScoreConfig())
    assert [str(each) for each in scores] == report["scores"][:3]


def fresh(trained) -> TranslationModel:
    recipe = load_config(train_translation.Recipe, trained.folder / "recipe.yaml")
    source, target = saved_vocabularies(recipe.data, trained.folder)
    return TranslationModel(recipe.model, len(source), len(target), pad_id=PAD)


def new_state(model: nn.Module) -> State:
    return State(model, torch.optim.AdamW(model.parameters(), lr=0.1), None)


def check_what_is_loaded_is_what_was_saved(trained, tmp_path) -> None:
    """Bit for bit in its outputs, and still tied, also after the next update."""
    saved = new_state(fresh(trained))
    batch = collate([0, 1], [[5, 6, 7], [8]], [[9], [10, 11]])
    loss(saved.model, batch).backward()
    saved.optimizer.step()
    path = saved.save(tmp_path)
    loaded = new_state(fresh(trained))
    loaded.load(path)
    for each in (saved, loaded):
        each.optimizer.zero_grad()
        loss(each.model, batch).backward()
        each.optimizer.step()
    golden = saved.model.eval()(*batch[1:5])
    assert all(map(torch.equal, loaded.model.eval()(*batch[1:5]), golden))
    tied = (loaded.model.source_embedding.tokens, loaded.model.target_embedding.tokens, loaded.model.output)
    assert len({module.weight.data_ptr() for module in tied}) == 1


def loss(model: nn.Module, batch) -> torch.Tensor:
    hidden, weight = model(*batch[1:5])
    return nn.functional.cross_entropy(hidden @ weight.T, batch.labels)


def test_a_checkpoint_brings_back_the_same_logits_and_tied_weights(trained, tmp_path):
    check_what_is_loaded_is_what_was_saved(trained, tmp_path)


def each_name_for_itself(monkeypatch):
    def broken(model, tensors):
        load_tensors_into(model, tensors)
        model.output.weight = nn.Parameter(tensors["output.weight"].clone())

    monkeypatch.setattr(state, "load_tensors_into", broken)


def without_moments(monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda self, given: None)


def without_norms(monkeypatch):
    def broken(model, tensors):
        model.load_state_dict({name: value for name, value in tensors.items() if "norm" not in name}, strict=False)
        nn.init.zeros_(model.encoder.norm.bias)
        nn.init.constant_(model.encoder.norm.weight, 0.5)

    monkeypatch.setattr(state, "load_tensors_into", broken)


@pytest.mark.parametrize("breakage", [each_name_for_itself, without_moments, without_norms])
def test_the_check_fails_where_something_else_is_loaded(trained, tmp_path, breakage, monkeypatch):
    breakage(monkeypatch)
    with pytest.raises(AssertionError):
        check_what_is_loaded_is_what_was_saved(trained, tmp_path)


def test_the_final_weights_are_those_of_the_chosen_checkpoint(trained):
    final = load_file(trained.folder / "model.safetensors")
    last = checkpoint.load(trained.folder / "checkpoints" / "step-00000240").tensors["model"]
    assert len(final) == len({value.data_ptr() for value in last.values()})
    assert all(torch.equal(value, last[name]) for name, value in final.items())


def test_the_same_command_again_changes_nothing(trained):
    before, weights = contents(trained.folder), load_file(trained.folder / "model.safetensors")
    train(*trained.arguments)
    assert contents(trained.folder) == before
    again = load_file(trained.folder / "model.safetensors")
    assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in weights)


def contents(folder: Path) -> dict[str, bytes]:
    """All but the model, whose metadata safetensors writes in any order, and what TensorBoard adds."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "model.safetensors"]
    return {str(path): path.read_bytes() for path in paths if "tensorboard" not in str(path)}


def test_every_option_at_once_trains_averages_and_translates(trained, tmp_path):
    train(
        *trained.arguments[:-1],
        str(tmp_path / "run"),
        *"--train.steps 6 --train.warmup 2 --train.evaluate_every 3 --train.save_every 2 --train.keep_last 3".split(),
        *"--train.average 2 --train.ema 0.5 --train.accumulate 2 --train.schedule cosine --loss.r_drop 2".split(),
        *"--train.optimizer adam --train.weight_decay 0.1 --train.precision bf16 --train.tensorboard false".split(),
        *"--data.vocabulary.joint false --data.vocabulary.dropout 0.1 --data.vocabulary.size 40".split(),
        *"--model.tie target --model.decoder_depth 2 --model.block.order post --model.block.norm rms".split(),
        *"--model.block.position relative --model.block.activation swiglu --model.block.num_kv_heads 1".split(),
        *"--model.block.dropout 0.1 --search.max_length 5".split(),
    )
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {"source.model", "target.model", "model.safetensors"} and "tensorboard" not in names
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert set(report["results"]) == {"last", "averaged (last 2)"}
    last = tmp_path / "run" / "checkpoints" / "step-00000006"
    tensors = checkpoint.load(last).tensors
    assert torch.equal(tensors["ema"]["output.weight"], tensors["ema"]["target_embedding.tokens.weight"])
    assert not torch.equal(tensors["ema"]["output.weight"], tensors["model"]["output.weight"])
    for weights in ([], [last]):
        assert len(load(tmp_path / "run", weights=weights).translate(["red", "", "dog"])) == 3


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_a_configuration_of_one_program(path):
    programs = []
    # A preset of blocks and depths fits all that have both, so reading text is asked for its own recipe alone.
    recognition = [train_recognition.Recipe] if path.stem == "recognition" else []
    for kind in (train_translation.Recipe, train_images.Recipe, *recognition):
        with suppress(InputError):
            programs.append(read(kind, [f"--config={path}"]))
    assert len(programs) == 1


@pytest.mark.parametrize(("name", "millions"), [("base", 65), ("big", 213)])
def test_the_presets_have_the_size_that_the_paper_gives(name, millions):
    """Vaswani et al. (2017), table 3, with about 37,000 pieces (section 5.1); its numbers are rounded."""
    recipe = read(train_translation.Recipe, [f"--config={RECIPES / 'presets' / name}.yaml"])
    with torch.device("meta"):
        model = TranslationModel(recipe.model, 37_000, 37_000, pad_id=PAD)
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.035)
