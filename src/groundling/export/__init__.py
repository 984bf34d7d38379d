"""Models leave for other programs, and come from them: Hugging Face's `transformers`, GGUF, nanoGPT."""
