"""Training: one step, the loop, what it saves, and the verb `pretrain`."""
