"""Azure Batch: attempts are Batch tasks, in long-lived jobs, on pools made for their shape."""
