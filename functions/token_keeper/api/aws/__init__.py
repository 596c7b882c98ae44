"""The readers' own AWS client: signatures, and the calls that they make."""
