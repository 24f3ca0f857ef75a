"""Networks, each with stages, an embedding and a head."""
