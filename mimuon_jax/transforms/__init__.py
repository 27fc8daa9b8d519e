"""Optax transformations: the pieces that optimizers are chained from.

In here: one transformation or one idea per file, and the rule that decides which parameter is a
matrix. Not in here: learning rates and defaults of whole optimizers. Imports from
`mimuon_jax.linalg` and `mimuon_jax.engine`.
"""
