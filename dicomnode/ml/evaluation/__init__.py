"""How well labels agree with the truth, and whether a candidate may replace the current model."""
