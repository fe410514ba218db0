"""What a Batch backend needs of an Azure subscription, one module for each kind of resource."""
