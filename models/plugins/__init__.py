"""Plugins: registries, specs, and the errors that a user can mend. Nothing here needs torch."""
