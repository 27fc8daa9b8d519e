"""The optimizers: each is an `optax.chain` of the pieces in `mimuon_jax.transforms`.

Each is ``f(learning_rate, *, ...)``, keyword-only after the learning rate, in one order: the
method's own arguments, ``momentum``, ``nesterov``, ``orthogonalizer``, ``gain``, ``weight_decay``,
``auxiliary``, ``auxiliary_learning_rate``, ``matrices``, ``shardings``, ``split``,
``weight_decay_mask``, ``auxiliary_weight_decay``, ``state_dtype``. Weight decay is decoupled:
``W <- (1 - eta lambda) W - eta update``.
"""
