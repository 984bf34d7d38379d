"""Models for other programs, and from them: Hugging Face, GGUF, nanoGPT.

In reading order:

    cli.py                  `groundling export`
    families.py             which published family a GPT is, and its config.json
    weights.py              tensors under that family's names
    additions.py            the special tokens that an export adds
    chat_template/          chat templates: written, rendered, recognised
    hf.py                   a folder for transformers
    hf_tokenizer.py         its tokenizer.json
    export_note.py          what import has to undo
    gguf.py                 a GGUF file
    gguf_vocabulary.py      its tokenizer
    import_cli.py           `groundling import`
    config_json.py          config.json of others, with each fault named
    hf_folder.py            a model from a folder of transformers
    hf_tokenizer_import.py  its tokenizer
    hf_speech.py            its tokenizer, ends and chat template together
    nanogpt.py              nanoGPT's checkpoint
"""
