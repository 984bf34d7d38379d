"""HTTP: connections, requests before any route, responses.

In reading order:

    protocol.py      connections: limits, deadlines, closing
    framing.py       strict parsing of HTTP/1.1
    outlet.py        writing responses, and resetting connections
    middleware.py    host, origin, request log
    auth.py          API keys
    bodies.py        bodies: size and time limits
    encodings.py     bodies: gzip, UTF-8
    errors.py        errors in OpenAI's format
    validation.py    one-sentence errors for invalid bodies
    schema_words.py  describe values and JSON schemas in words
    responses.py     responses and server-sent events that end when the client leaves
"""
