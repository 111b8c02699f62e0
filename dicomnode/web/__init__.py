"""What a node shows over HTTP: its health, its figures and its studies; no patient data."""
