"""Routers: which model draws the next token of a token cascade. Every number of a router is traced."""

from specjax.routers.confidence import ChowRouter
from specjax.routers.confidence import DiffOracle
from specjax.routers.confidence import EntropyRouter
from specjax.routers.confidence import RandomRouter
from specjax.routers.divergence import KLOracle
from specjax.routers.divergence import LearnedRouter

__all__ = ['ChowRouter', 'DiffOracle', 'EntropyRouter', 'KLOracle', 'LearnedRouter', 'RandomRouter']
