"""Export to and import from other programs: Hugging Face, GGUF, nanoGPT.

In reading order:

    cli.py                  `groundling export`
    families.py             the published family of a GPT, and its config.json
    weights.py              tensors under that family's names
    additions.py            special tokens added by an export
    chat_template/          chat templates: writing, rendering and recognising Jinja
    hf.py                   a folder for transformers
    hf_tokenizer.py         its tokenizer.json
    export_note.py          a record of the additions, for import to undo
    gguf.py                 a GGUF file
    gguf_vocabulary.py      its tokenizer
    import_cli.py           `groundling import`
    config_json.py          foreign config.json, validated
    hf_folder.py            a model from a folder of transformers
    hf_tokenizer_import.py  its tokenizer
    hf_speech.py            its tokenizer, end tokens and chat template together
    nanogpt.py              nanoGPT's checkpoint
"""
