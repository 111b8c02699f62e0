"""The commands that people type, grouped as ``dicomnode --help`` shows them."""
