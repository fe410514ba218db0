"""Traces and metrics for those who operate the server, sent to where they look at them."""
