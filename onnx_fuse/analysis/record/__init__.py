"""The parts found, sorted by their roles, as the record of one block."""
