"""The verbs of `python -m specjax.eval`: whose parameters are their flags, other names of flags, what they read."""

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from specjax.core.errors import ConfigError
from specjax.evaluation import calibrate
from specjax.evaluation import certify
from specjax.evaluation import compare as compare_lib
from specjax.evaluation import drafts
from specjax.evaluation import evaluate
from specjax.evaluation import listing
from specjax.evaluation import report

LOG = logging.getLogger('specjax.eval')

# What users of other tools type.
SWEEP = {
    'pair': 'pairs', 'task': 'tasks', 'method': 'methods', 'temperature': 'temperatures', 'seed': 'seeds',
    'batch_size': 'batch_sizes', 'concurrency': 'batch_sizes', 'limit': 'max_samples', 'threshold': 'thresholds',
    'num_speculative_tokens': 'num_draft_tokens', 'speculative_num_steps': 'num_draft_tokens',
    'speculative_num_draft_tokens': 'num_draft_tokens', 'spec_draft_n_max': 'num_draft_tokens',
    'block_size': 'num_draft_tokens', 'output_dir': 'output_path',
}
SINGLE = {
    'pairs': 'pair', 'tasks': 'task', 'methods': 'method', 'output_dir': 'output_path',
    'num_speculative_tokens': 'num_draft_tokens'}
SINGLE_PAIR = {'pairs': 'pair', 'tasks': 'task', 'method': 'methods', 'output_dir': 'output_path', 'limit': 'max_samples',
               'num_speculative_tokens': 'num_draft_tokens'}
RESULTS = {'output_dir': 'output_path'}


class Verb(NamedTuple):
  """One verb.

  Attributes:
    entry: the function whose parameters are flags. Without a gin file it is called with the words behind the verb, and
      what it returns is printed.
    aliases: other names of flags.
    defaults: the gin file that is read where none is named, None for a verb without a configuration.
    max_words: how many words may stand behind it.
  """

  entry: Callable
  aliases: Mapping[str, str]
  defaults: str | None = None
  max_words: int = 0


def plot(directory: str | None = None, /, *, output_path: str | None = None):
  """The table of a run, after its reports have been built again.

  Args:
    directory: of the run.
    output_path: the same, as a flag.

  Raises:
    ConfigError: not exactly one directory, or nothing in it.
  """
  if (directory is None) == (output_path is None):
    got = None if directory is None else f'{directory} --output_path={output_path}'
    raise ConfigError(what='directory', where='command line', got=got, expected='one',
                      fix='Write: python -m specjax.eval plot DIR')
  written = report.write(directory or output_path)
  for name in ('report.html', 'report.md', 'results.json'):
    LOG.info('%s', written.directory / name)
  return written.table


def compare(first: str | None = None, second: str | None = None, /, *, output_path: str | None = None):
  """The comparison of two runs as text, which is also written, with its numbers.

  Args:
    first, second: directories of runs.
    output_path: where compare.json and compare.md go; None is the first directory.

  Raises:
    ConfigError: not two directories, or nothing in one.
  """
  if second is None:
    raise ConfigError(what='directories', where='command line', got=first, expected='two',
                      fix='Write: python -m specjax.eval compare DIR_A DIR_B')
  result = compare_lib.compare(compare_lib.read(first), compare_lib.read(second))
  for path in compare_lib.write(result, output_path or first):
    LOG.info('%s', path)
  return compare_lib.text(result)


VERBS = {
    'run': Verb(evaluate.evaluate, SWEEP, 'eval.gin'),
    'bench': Verb(evaluate.evaluate, SWEEP, 'bench.gin'),
    'validate': Verb(evaluate.evaluate, SWEEP, 'eval.gin', max_words=1),
    'calibrate': Verb(calibrate.calibrate, SINGLE, 'calibrate.gin'),
    'certify': Verb(certify.certify, SINGLE, 'certify.gin'),
    'drafts': Verb(drafts.drafts, SINGLE_PAIR, 'drafts.gin'),
    'compare': Verb(compare, RESULTS, max_words=2),
    'plot': Verb(plot, RESULTS, max_words=1),
    'list': Verb(listing.text, {}, max_words=1),
}


def lookup(verb: str) -> Verb:
  """The `Verb` of a name.

  Raises:
    ConfigError: there is none.
  """
  if verb not in VERBS:
    raise ConfigError(what='verb', where='command line', got=verb, expected=f'one of {", ".join(VERBS)}')
  return VERBS[verb]
