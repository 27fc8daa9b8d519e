"""Which matrices are computed where: batches of equal shapes, on one device or on any mesh.

In here: the axes that make an array a batch of matrices, the plan of the work, and the exchanges
that carry it out. A function of matrices travels through as a value. Not in here: what such a
function computes, parameter names, optax transformations. Imports nothing from the other rooms.
"""
