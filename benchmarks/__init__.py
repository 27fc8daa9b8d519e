"""Counts and times of one optimizer step, next to those of the baselines, in one process."""
