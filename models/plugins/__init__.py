"""Plugins: registries, specs, and the errors that a user can fix. Nothing here imports torch."""
