"""A hospital node beside the PACS: segments, learns from corrections, shares what it learned."""

__version__ = "0.1.0"
