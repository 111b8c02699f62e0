"""From training images to the plan of a model."""
