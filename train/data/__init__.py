"""Data: where examples come from, and how they become the batches of a step."""
