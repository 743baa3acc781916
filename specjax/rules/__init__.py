"""Target rules: which law the output must follow. Every number of a rule is traced."""

from specjax.rules.bild import Bild
from specjax.rules.chow import Chow
from specjax.rules.difference import Diff
from specjax.rules.learned import LearnedDeferral
from specjax.rules.lossless import Lossless
from specjax.rules.lossy import LossyGreedy
from specjax.rules.lossy import LossySpeculative
from specjax.rules.mixture import Mixture
from specjax.rules.optimal import Opt
from specjax.rules.token_specific import TokenV1
from specjax.rules.token_specific import TokenV2
from specjax.rules.token_specific import TokenV3
from specjax.rules.truncated_target import TruncatedTarget

__all__ = [
    'Bild', 'Chow', 'Diff', 'LearnedDeferral', 'Lossless', 'LossyGreedy', 'LossySpeculative', 'Mixture', 'Opt', 'TokenV1',
    'TokenV2', 'TokenV3', 'TruncatedTarget']
