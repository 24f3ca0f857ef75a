"""Tables, which are pure functions of records."""
