"""HTTP: connections, requests before any route, responses.

In reading order:

    protocol.py      connections: how many, how long, how they end
    framing.py       HTTP/1.1 read strictly
    outlet.py        writing, and breaking a connection off
    middleware.py    host, origin, request log
    auth.py          API keys
    bodies.py        bodies: size and time
    encodings.py     bodies: gzip, UTF-8
    errors.py        errors in OpenAI's shape
    validation.py    an invalid body in one sentence
    schema_words.py  a value and a JSON schema in words
    responses.py     responses and server-sent events that end when the client leaves
"""
