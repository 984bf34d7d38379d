"""From a text to batches of token ids."""
