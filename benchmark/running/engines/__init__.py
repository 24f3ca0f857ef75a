"""Where attempts at cells are made: this process, several, or a cluster."""
