"""Conversations, preferences and prompts.

In reading order:

    jsonl.py           rows of JSON, with each fault named by file and line
    messages.py        the messages of a row, in the layouts of OpenAI and ShareGPT
    shared_prompts.py  the common prompt of two whole texts
    conversations.py   rows as conversations, preferences or prompts
    labelled.py        rows as replies with labels (KTO)
    encoding.py        them as ids, and which are learned
    shakespeare.py     plays as conversations
"""
