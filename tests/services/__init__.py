"""Real services for tests: a Docker engine, Podman, PostgreSQL; each started and stopped here.

Every service is a `Service` (base.py) that keeps all it owns below one directory.
`session.py` shares one instance of each between the workers of a test run.
"""
