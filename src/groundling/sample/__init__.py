"""Sampling: from logits to text."""
