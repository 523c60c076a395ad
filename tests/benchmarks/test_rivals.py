import json
from dataclasses import replace

import pytest

from benchmarks import recurrent
from benchmarks.recurrent import Recipe, count, model_configs
from recipes.config import read

SMALL = """
    --data.source en --data.target de --data.tokens 256 --data.filter.max_length 30
    --data.vocabulary.size 40 --data.vocabulary.byte_fallback false --search.max_length 8 --search.beams 1
    --model.block.dim 64 --model.block.num_heads 2 --model.block.hidden_dim 128
    --model.encoder_depth 1 --model.decoder_depth 1 --train.warmup 5 --minutes 0.03
""".split()


def test_rivals_have_as_many_weights_as_the_transformer():
    configs = model_configs(read(Recipe, SMALL))
    assert set(configs) == set(recurrent.TITLES)
    wanted = count(configs["transformer"], 40)
    for config in configs.values():
        assert count(config, 40) == pytest.approx(wanted, rel=recurrent.TOLERANCE)


@pytest.mark.slow
def test_a_model_trains_until_its_time_is_up_and_is_scored(tmp_path):
    (tmp_path / "words").write_text("one two three\nfour five\nsix seven eight nine ten\neleven\n" * 40)
    words = "[{source: words, target: words}]"
    files = [f"--data.folder={tmp_path}", *(f"--data.{split}={words}" for split in ("train", "valid", "test"))]
    recipe = read(Recipe, [*SMALL, *files, f"--out={tmp_path}"])
    recurrent.main(replace(recipe, models=["recurrent_bilinear_attention"]))
    (found,) = json.loads((tmp_path / "recurrent.json").read_text())["models"]
    assert found["name"] == "recurrent_bilinear_attention" and found["dim"] % 2 == 0
    assert found["seconds"] >= 1.8 and found["updates"] >= 1  # the update into which the end falls is finished
    assert 10 * found["updates"] < found["tokens"] <= 256 * found["updates"]
    assert 0 < found["valid_loss"] < 7
    assert "Luong et al. 2015" in (tmp_path / "recurrent.md").read_text()
