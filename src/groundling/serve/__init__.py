"""An HTTP server with OpenAI's API, and pages for chat, x-ray, comparison and training runs.

In reading order:

    cli.py          `groundling serve`
    config.py       its settings
    app.py          routes, middleware, error handlers
    state.py        models by name, and the thread that owns them
    server.py       shutdown
    http/           HTTP/1.1, middleware, keys, errors, responses
    completions/    OpenAI's API: schema, requests, output
    decode/         the decoding thread, its queue, and the streams of tokens
    xray.py         attention and predictions of a model for a text
    checkpoints.py  checkpoints the X-ray has loaded
    ranking/        the API of the ranking page
    runs/           the API of the training page
    pages.py        pages and static files
    token_text.py   text and bytes of each id
    static/         the pages: HTML, CSS, JavaScript
    telemetry.py    Prometheus metrics
"""
