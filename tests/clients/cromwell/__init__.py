"""A double of Cromwell, and its workflows run by a real server."""
