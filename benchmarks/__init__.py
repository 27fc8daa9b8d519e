"""Counts and times of one optimizer step, ours beside the peers', in one process."""
