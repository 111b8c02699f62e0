"""Pictures for people: labels over images, and what a correction changed."""
