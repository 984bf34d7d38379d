"""The lecture as a ladder, one rung a file."""
