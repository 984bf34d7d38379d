"""Train a small GPT on a text of your own, from Python, and sample from it: python examples/your_own_text.py TEXT"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from groundling import GPTConfig, generate, load_bundle
from groundling.data.corpus import DataConfig
from groundling.train.optim.optimizers import OptimConfig
from groundling.train.pretrain import pretrain
from groundling.train.settings import PretrainConfig

if len(sys.argv) != 2:
    sys.exit(__doc__)

with TemporaryDirectory() as folder:
    run = Path(folder) / "run"
    summary = pretrain(
        PretrainConfig(
            out_dir=run,
            steps=200,
            batch_size=16,
            data=DataConfig(path=sys.argv[1]),
            model=GPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=64),
            optim=OptimConfig(kind="muon", lr=3e-3),
        )
    )
    print(f"validation loss {summary.figures['val_loss']:.3f} after {summary.figures['tokens']:,} tokens")
    print(generate(load_bundle(run), "\n", max_new_tokens=200))
