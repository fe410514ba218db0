"""The durable truth: tasks, their attempts and events, in SQLite or PostgreSQL."""
