"""From an image to labels on the same voxels: tiles, ensembles, memory."""
