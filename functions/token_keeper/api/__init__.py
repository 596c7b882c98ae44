"""What only ApiFunction loads: no secret, and no library but Python's own."""
