"""Shipped test machinery: toy models, exact enumeration, statistics, mutants and conformance suites."""
