"""Where attempts are placed, made of the settings and changed while the server runs."""
