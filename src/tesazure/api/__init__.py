"""The HTTP API: the TES standard in two flavours, our extensions, and what operators look at."""
