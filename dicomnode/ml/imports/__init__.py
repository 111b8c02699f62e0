"""How somebody else's model becomes one of ours: its archive, its labels, its weights."""
