"""SDKs that take their tokens from the keeper, each by one line."""
