"""One module per source format. A reader yields records in a stable order and returns encoded images."""
