"""The page on which one sees a stack work: of the local stack at its API's address, of a deployed one by `console`."""
