"""The one program that takes a Plan on a node: stage in, run executors, stage out, report."""
