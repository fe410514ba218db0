"""The tests of tesazure; the real services that they use are in `tests.services`."""
