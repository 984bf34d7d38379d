"""Chat templates as data, never as code.

In reading order:
    messages.py         system, user and assistant messages
    template.py         ChatTemplate: messages to ids and loss mask
    role_tokens.py      the template of our own models
    wrapped_turns.py    templates of imported models, such as ChatML
    serialize.py        templates from JSON
    thoughts.py         reasoning before a reply
    reading.py          ids back to messages
"""
