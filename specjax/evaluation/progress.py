"""The progress bar of a sweep: rows done, tokens/s, acceptance length and acceptance rate of what was just measured."""

import logging
import sys

import tqdm

from specjax.evaluation import rows as rows_lib
from specjax.metrics import efficiency

LOG = logging.getLogger('specjax.eval')


def _figures(rows):
  """'tok/s · AL · acceptance rate' of some rows; the last two of those that draft, where something was drafted."""
  tokens = sum(sum(row['choices'][0]['new_tokens']) for row in rows)
  seconds = sum(sum(row['choices'][0]['wall_time']) for row in rows)
  counts = efficiency.sum_counts(rows_lib.counts_of(row) for row in rows if row['num_draft_tokens'])
  parts = [f'{tokens / seconds:,.0f} tok/s' if seconds else '- tok/s']
  if counts.proposed:
    parts.append(f'AL {efficiency.mean_acceptance_length(counts):.2f}')
    rate = efficiency.acceptance_rate(counts)
    parts.append(f'accepted {100 * rate:.0f} %' if rate is not None else 'accepted -')
  return ' · '.join(parts)


class Progress:
  """A bar on a terminal; one log line per visit of a block elsewhere.

  Args:
    total: rows of the whole sweep.
    done: rows that a previous session left.
  """

  def __init__(self, *, total, done):
    self._is_terminal = sys.stderr.isatty()
    self._bar = tqdm.tqdm(total=total, initial=done, unit='row', dynamic_ncols=True, disable=not self._is_terminal)
    self._total, self._done = total, done
    self._visit = []

  def measured(self, point, rows):
    """Shows the rows of one batch of a point."""
    self._done += len(rows)
    self._visit += rows
    self._bar.set_description_str(point.label, refresh=False)
    if rows:
      self._bar.set_postfix_str(_figures(rows), refresh=False)
    self._bar.update(len(rows))

  def visited(self, point, visit, num_visits):
    """Ends one visit of a block."""
    if not self._is_terminal and self._visit:
      LOG.info('%s %s T=%g: visit %d of %d, %d of %d rows, %s', point.pair, point.task, point.sampling.temperature,
               visit + 1, num_visits, self._done, self._total, _figures(self._visit))
    self._visit = []

  def close(self):
    """Takes the bar away."""
    self._bar.close()
