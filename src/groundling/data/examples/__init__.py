"""Conversations, preferences and prompts.

In reading order:

    jsonl.py           rows of JSON; errors name file and line
    messages.py        the messages of a row, in the formats of OpenAI and ShareGPT
    shared_prompts.py  the common prompt of two whole texts
    conversations.py   rows as conversations, preferences or prompts
    labelled.py        rows as replies with labels (KTO)
    encoding.py        token ids and loss masks
    shakespeare.py     plays as conversations
"""
