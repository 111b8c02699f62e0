"""Received images as planes, stacks and volumes in modality units."""
