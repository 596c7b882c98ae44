"""What tests share: worlds to act in, and stand-ins that run here."""
