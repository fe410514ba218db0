"""Makes what a Batch backend needs in an Azure subscription: step by step, resumable."""
