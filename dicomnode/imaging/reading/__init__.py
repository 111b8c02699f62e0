"""Readers' objects, segmentations and structure sets, onto the planes of the images they were drawn on."""
