"""Who sends a request: bearer tokens of Entra ID or another OpenID provider, and API tokens."""
