"""What only RefreshFunction loads: the only code that handles AppSecrets."""
