"""The Muon family of optimizers for JAX, as composable Optax transformations."""
