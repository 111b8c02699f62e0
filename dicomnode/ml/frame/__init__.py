"""The way of an image into the frame of a network, and of labels back onto the voxels of the image."""
