"""What each stage was good for, on held-out prompts.

In reading order:

    build.py     `groundling align-report`: samples, scores, collects
    evaluate.py  measures, win rates and KL of replies
    figures.py   the figures
    page.py      the table and the HTML page
"""
