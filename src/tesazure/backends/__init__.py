"""Where attempts are placed: one module or package per compute backend."""
