"""What a model found, as DICOM objects: segmentations, reports, contours, pictures."""
