"""Target rules: which law the output must follow. Every number of a rule is traced."""

from specjax.rules.chow import Chow
from specjax.rules.lossless import Lossless
from specjax.rules.token_specific import TokenV3

__all__ = ['Chow', 'Lossless', 'TokenV3']
