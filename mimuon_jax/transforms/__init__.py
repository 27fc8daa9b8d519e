"""Optax transformations: the building blocks that optimizers chain.

Each file holds one transformation or one idea; the rules that decide which parameters are matrices
are here too. Learning rates and the defaults of whole optimizers are not. May import from
`mimuon_jax.linalg` and `mimuon_jax.engine`.
"""
