"""Drafters: who proposes the tokens that the target verifies."""

from specjax.drafters.heads import HeadDrafter
from specjax.drafters.model import ModelDrafter
from specjax.drafters.model_tree import ModelTreeDrafter
from specjax.drafters.ngram import NgramDrafter
from specjax.drafters.none import NoDrafter
from specjax.drafters.prompt_lookup import PromptLookup
from specjax.drafters.refinement import LatticeRescoring, LocalRescoring
from specjax.drafters.stopping import Entropy, MaxProbability, Survival

__all__ = [
    'Entropy', 'HeadDrafter', 'LatticeRescoring', 'LocalRescoring', 'MaxProbability', 'ModelDrafter',
    'ModelTreeDrafter', 'NgramDrafter', 'NoDrafter', 'PromptLookup', 'Survival']
