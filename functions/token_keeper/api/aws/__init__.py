"""The readers' own AWS client: signatures, HTTP, and the calls that they make."""
