"""Training.

In reading order:

    pretrain.py    `groundling pretrain`
    settings.py    its settings
    arguments.py   its command line: defaults, preset, flags
    run.py         the run harness, also of the stages of alignment and of long rungs
    run_folder.py  the run folder: lock, room, summary.json
    resuming.py    which settings may change on resume
    initial.py     starting from a bundle (`init_from`)
    estimate.py    parameters, memory and time before the first step
    step.py        one optimizer step
    loop.py        the training loop, and the protocol of its callbacks
    state.py       everything that changes while training
    compiled.py    compilation of the objective
    callbacks.py   stop on a signal, evaluate, save, sample, stop early, record
    optim/         AdamW, Muon, schedule, EMA
    checkpoints/   checkpoints on disk
    distill/       teachers
    speedrun/      `groundling speedrun`
"""
