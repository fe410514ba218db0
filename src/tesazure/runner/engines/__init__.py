"""What runs a container on a node: docker, podman, sandbox."""
