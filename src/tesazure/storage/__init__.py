"""Storage systems, chosen by URL: one file per system."""
