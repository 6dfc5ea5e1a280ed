"""Steps, what they leave on the disk, and what is done where one goes wrong."""
