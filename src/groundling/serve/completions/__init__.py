"""OpenAI's API of completions.

In reading order:

    schema.py           fields of requests
    conversation.py     messages to a conversation
    requests.py         requests to ids and sampling settings
    completion.py       requests to responses
    output.py           tokens to text: stop strings, safety, thoughts
    response_format.py  the JSON of chat and text completions, complete or in chunks
"""
