"""Training: fit, checkpoints, resume. The only package that imports lightning."""
