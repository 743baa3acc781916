"""How likely two models find the references of a task: perplexity, bits per byte, whether they would have written them.

A property of each model, whatever decodes with it; so it stands in run.json beside the pair and not in rows.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from specjax.evaluation import aggregate
from specjax.evaluation import runner
from specjax.metrics import perplexity
from specjax.metrics import statistics

ACCURACY = 'accuracy|teacher_forced'


def summary(found: Sequence[runner.Likelihood], names: Sequence[str], *, is_judged: bool) -> dict[str, Any]:
  """A JSON object: perplexity with its interval, bits per byte, texts, tokens and bytes.

  Args:
    found: of each reference.
    names: of the questions; the bootstrap draws them again.
    is_judged: whether a reference is an answer; then the share of references whose every token is the likeliest is
      given.
  """
  total = lambda field: sum(getattr(one, field) for one in found)
  log_prob, num_tokens, num_bytes = map(total, ('log_prob', 'num_tokens', 'num_bytes'))
  nats = statistics.ratio_interval(
      [-one.log_prob for one in found], [one.num_tokens for one in found], groups=names, seed=aggregate.BOOTSTRAP_SEED)
  ends = (None if end is None else perplexity.perplexity(-end, 1) for end in (nats.low, nats.high))
  shown = {
      perplexity.NAME: statistics.Interval(perplexity.perplexity(log_prob, num_tokens), *ends)._asdict(),
      perplexity.BITS_NAME: perplexity.bits_per_byte(log_prob, num_bytes), 'texts': len(found), 'tokens': num_tokens,
      'bytes': num_bytes}
  if is_judged:
    shown[ACCURACY] = statistics.wilson_interval(sum(one.is_best for one in found), len(found))._asdict()
  return shown


def line(task: str, shown: Mapping[str, Any]) -> str:
  """A summary in one line."""
  ppl = shown[perplexity.NAME]
  ends = '' if ppl['low'] is None or math.isinf(ppl['high']) else f' [{ppl["low"]:.4g}, {ppl["high"]:.4g}]'
  right = f', {100 * shown[ACCURACY]["estimate"]:.1f} % would have been written' if ACCURACY in shown else ''
  return (f'perplexity {ppl["estimate"]:.4g}{ends} and {shown[perplexity.BITS_NAME]:.3f} bits per byte over the '
          f'references of {task} ({shown["texts"]} texts, {shown["tokens"]} tokens{right})')
