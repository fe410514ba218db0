"""The command line: talks HTTP like any client; only `serve` reaches the server itself."""
