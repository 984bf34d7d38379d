"""OpenAI's API of completions.

In reading order:

    schema.py           fields of requests
    conversation.py     messages as a conversation
    requests.py         a request as ids and sampling settings
    completion.py       from a request to its response
    output.py           tokens as text: stop strings, safety, thoughts
    response_format.py  chat and text completions, whole or in chunks
"""
