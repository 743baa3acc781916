"""Decoding loops over protocols: models, drafters, rules and verifiers are parameters of one loop."""
