"""tesazure: a GA4GH Task Execution Service (TES) for Azure and for one machine."""

__version__ = "0.1.0"
