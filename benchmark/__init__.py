"""The harness: where attacks meet defenses, and everything a user runs."""
