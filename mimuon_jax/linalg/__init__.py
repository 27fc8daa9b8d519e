"""Functions on arrays ``[..., m, n]``: orthogonalization, spectral powers, measures.

In here: pure functions of arrays, and their coefficients. Not in here: trees, parameter names,
optax, meshes. Imports nothing from the other rooms.
"""
