"""Training.

In reading order:

    pretrain.py    `groundling pretrain`
    settings.py    its settings
    arguments.py   its command line: defaults, preset, flags
    run_folder.py  the folder of a run, and its lock
    resuming.py    whether and how a run is resumed
    initial.py     starting from a bundle
    estimate.py    parameters, memory and time before the first step
    step.py        one optimizer step
    loop.py        the loop
    state.py       all that changes while training
    compiled.py    what is compiled
    callbacks.py   evaluations, checkpoints, records, samples
    summary.py     summary.json
    optim/         AdamW, Muon, schedule, EMA
    checkpoints/   checkpoints on disk
    distill/       teachers
    speedrun/      `groundling speedrun`
"""
