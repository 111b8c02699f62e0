"""What a received object is beside what was sent, how it differs, and whether it can be believed."""
