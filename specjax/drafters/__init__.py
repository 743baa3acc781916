"""Drafters: who proposes the tokens that the target verifies."""

from specjax.drafters.model import ModelDrafter
from specjax.drafters.none import NoDrafter

__all__ = ['ModelDrafter', 'NoDrafter']
