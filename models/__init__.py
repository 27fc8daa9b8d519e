"""Model definitions in Flax nnx: one folder a model. They know no optimizer."""
