"""Batches of many shapes in a compiled model."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import random, torch
from torch._dynamo.utils import counters
from tasks.translation.model import TranslationConfig, TranslationModel
from tasks.translation.task import collate
from transformer_core import BlockConfig

block = BlockConfig(dim=12, num_heads=3, hidden_dim=20)
model = TranslationModel(TranslationConfig(block=block, encoder_depth=1, decoder_depth=1), 23, 23, pad_id=0)
compiled, draw = torch.compile(model, dynamic=True, backend="eager"), random.Random(0)
for _ in range(16):
    source, target = ([[5] * draw.randint(2, 20) for _ in range(rows)] for rows in [draw.randint(2, 9)] * 2)
    batch = collate([*range(len(source))], source, target)
    compiled(batch.source, batch.mask, batch.target, batch.positions)
    print(counters["stats"]["unique_graphs"])
"""


def test_after_the_first_batches_no_shape_is_compiled_anew():
    # Alone, because the checks of shapes that the tests put into the core cannot be compiled.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    graphs = [int(line) for line in found.stdout.split()]
    assert len(graphs) == 16 and graphs[8] <= 4 and graphs[-1] == graphs[8]
