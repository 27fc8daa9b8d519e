"""Counts and times of one optimizer step, beside those of the baselines, in one process."""
