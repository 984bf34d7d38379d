"""Train the rung with one head of attention; print what each character looks at: python examples/see_attention.py"""

import torch

from groundling.data.corpus import DataConfig, prepare
from groundling.ladder.fused import attention_weights
from groundling.ladder.train import train_rung

text = "To be, o"
corpus = prepare(DataConfig(), block_size=8)
model = train_rung("s3", steps=1000, corpus=corpus).model
idx_BT = torch.tensor([corpus.tokenizer.encode(text)])
with torch.no_grad():
    x_BTC = model.token_embedding(idx_BT) + model.position_embedding(torch.arange(idx_BT.shape[1]))
    head = model.body
    weights_TS = attention_weights(head, head.query(x_BTC), head.key(x_BTC))[0]

print("each row: a character, and how much it takes from those up to it, in per cent")
print("     " + "".join(f"{character!r:>6}" for character in text))
for character, row in zip(text, weights_TS, strict=True):
    print(f"{character!r:>5}" + "".join(f"{100 * weight:6.0f}" for weight in row.tolist()))
