"""Programs for those who work on tesazure; no part of the installed package."""
