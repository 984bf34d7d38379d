"""The machine and the process.

In reading order:

    runtime.py        device, precision, threads, allocator
    compile.py        torch.compile with a fallback to eager execution
    memory.py         total, free and used memory
    hardware.py       processor, environment, peak of matrix products
    distributed.py    ranks
    signals.py        SIGTERM and Ctrl-C
    processes.py      jobs side by side in worker processes
    child_process.py  a verb as a child that ends with its parent
    output.py         stdout and stderr that cannot fail
    logs.py           log messages as lines for people or as JSON
    console.py        progress of a run, status lines, tables
    metrics.py        records of runs: JSON lines, TensorBoard, Weights & Biases
    progress.py       progress lines for long work
    plotting.py       matplotlib
    optional.py       optional packages
"""
