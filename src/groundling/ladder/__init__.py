"""The lecture as a ladder: one rung a file.

In reading order:

    s1_bigram.py        bigram: a V x V table
    trick.py            the mathematical trick in self-attention
    s2_embeddings.py    token and position embeddings
    s3_one_head.py      one head of self-attention
    s4_multi_head.py    multi-head attention
    s5_feed_forward.py  feed-forward
    s6_residual.py      residual connections, several blocks
    s7_layer_norm.py    pre-norm LayerNorm
    s8_scaled.py        dropout, and the lecture's final size
    s9_production.py    the same function as model/gpt.py
    fused.py            the heads of s4 in one product
    rungs.py            table of the rungs: settings and the lecture's losses
    train.py            `groundling ladder`
    show.py             `groundling ladder show`
    runs/               train one rung, and record its results
"""
