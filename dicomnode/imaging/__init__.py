"""DICOM objects to values and back, without disk, network or clock.

Volumes are `highdicom.Volume` with axes (slice, row, column) and an affine to patient
coordinates (LPS, millimetres); slices are ordered along the normal of the image plane.
"""
