"""Networks. Each has stages, an embedding and a head."""
