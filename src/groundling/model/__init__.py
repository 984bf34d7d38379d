"""The production model. It knows nothing of ranks, devices, logging, files or HTTP: those are applied to it."""
