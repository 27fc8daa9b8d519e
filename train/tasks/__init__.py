"""Tasks: a configuration each, and the model, data, loss and evaluation it stands for."""
