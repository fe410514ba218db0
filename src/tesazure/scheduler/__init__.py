"""Places tasks, watches their attempts and keeps the store true to what happens."""
