"""Compare models of all stages on held-out prompts.

In reading order:

    build.py     `groundling align-report`: builds the report
    config.py    its config
    policies.py  samples and evaluates replies of each model
    evaluate.py  gold measure, win rate and diversity of replies
    collect.py   figures from run folders and rankings
    schema.py    the report as dataclasses, and as report.json
    figures.py   the figures
    page.py      the table and the HTML page
"""
