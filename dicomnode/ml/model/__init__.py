"""What a model is: its plan, its labels, its weights on disk, and the network built from them."""
