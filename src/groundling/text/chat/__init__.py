"""Conversations as ids: chat templates as data, never as code.

In reading order:
    messages.py         messages of a system, a user and an assistant, in turns
    template.py         ChatTemplate: messages to ids, and which of them the assistant said
    role_tokens.py      the template of our own models
    wrapped_turns.py    templates of imported models, ChatML and its like
    serialize.py        templates from JSON
    thoughts.py         what a model thinks before it replies
    reading.py          ids back to messages
"""
