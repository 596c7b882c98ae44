"""Programs that print the tables of the documents. `pytest` does not run them."""
