"""Batches of many shapes, and blocks that differ a little, in a compiled model."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
START = """
import functools, random, torch
from torch._dynamo.utils import counters
from recipes.compiling import compiled
from tasks.image_classification.model import ImageModelConfig, build_model
from tasks.image_classification.swin import SwinConfig
from tasks.image_classification.vit import VitConfig
from tasks.translation.model import TranslationConfig, TranslationModel
from tasks.translation.task import collate
from transformer_core import BlockConfig

torch.compile = functools.partial(torch.compile, backend="eager")
"""
SENTENCES = """
block = BlockConfig(dim=12, num_heads=3, hidden_dim=20)
model = TranslationModel(TranslationConfig(block=block, encoder_depth=3, decoder_depth=3), 23, 23, pad_id=0)
trained, draw = compiled(model, ragged=True), random.Random(0)
for _ in range(16):
    source, target = ([[5] * draw.randint(2, 20) for _ in range(rows)] for rows in [draw.randint(2, 9)] * 2)
    batch = collate([*range(len(source))], source, target)
    trained(batch.source, batch.mask, batch.target, batch.positions).hidden.sum().backward()
    print(counters["stats"]["unique_graphs"])
"""
WINDOWS = """
block = BlockConfig(dim=12, num_heads=3, hidden_dim=20, order="pre", position="relative", drop_path=0.3)
swin = SwinConfig(depths=(2, 2, 4, 2), window=(2, 2), patch_size=(2, 2))
config = ImageModelConfig(kind="swin", image_size=(32, 32), block=block, swin=swin)
trained = compiled(build_model(config, 5, channels=3), ragged=False)
for images in (4, 4, 3, 4):
    trained(torch.randn(images, 3, 32, 32)).sum().backward()
    print(counters["stats"]["unique_graphs"])
"""
IMAGES = """
block = BlockConfig(dim=12, num_heads=3, hidden_dim=20, order="pre", position="learned", drop_path=0.3)
config = ImageModelConfig(image_size=(16, 16), block=block, vit=VitConfig(depth=12, patch_size=(8, 8)))
trained = compiled(build_model(config, 5, channels=3), ragged=False)
for _ in range(2):
    trained(torch.randn(4, 3, 16, 16)).sum().backward()
    print(counters["stats"]["unique_graphs"])
"""


def graphs(program: str) -> list[int]:
    # Alone, because the checks of shapes that the tests put into the core cannot be compiled.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", START + program]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0 and "recompile_limit" not in found.stderr, found.stderr
    return [int(line) for line in found.stdout.split()]


def test_after_the_first_batches_no_shape_is_compiled_anew():
    found = graphs(SENTENCES)
    assert len(found) == 16 and found[8] <= 8 and found[-1] == found[8]


def test_each_size_of_windows_is_compiled_and_none_is_given_up():
    first, again, shorter, last = graphs(WINDOWS)
    assert first == again and shorter == last == 2 * first > 8


def test_blocks_that_skip_different_shares_of_the_examples_share_their_code():
    found = graphs(IMAGES)
    assert found == [3, 3]  # the first block never skips, the last one returns the class token alone
