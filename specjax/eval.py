"""Decodes, times, scores and reports.

  python -m specjax.eval [run] --output_path=DIR [flags]     a sweep: pairs x tasks x methods x knobs x sampling x seeds
  python -m specjax.eval bench --output_path=DIR [flags]     speed alone: batch sizes x draft lengths, forced length
  python -m specjax.eval calibrate --method=M --pair=P --deferral_rate=R|--quality_floor=F --output_path=DIR [flags]
                                                             the threshold for a share to defer, or of quality to keep
  python -m specjax.eval certify --method=M --pair=P --output_path=DIR [flags]
                                                             whether a method follows its law: enumerated, and sampled
  python -m specjax.eval plot DIR                            figures and reports again, from DIR/rows.jsonl
  python -m specjax.eval list [methods|tasks|pairs]          what can be named

Flags are the parameters of `specjax.evaluation.evaluate.evaluate` (or of the verb's own function; --help lists them),
--gin_file=FILE and --gin.NAME=value; the rest comes from gin/eval.gin or gin/VERB.gin. `plot` and `list` take no flags.

Exit codes: 0 done; 1 a certificate that fails; 2 something to mend, in one line; 130 (Ctrl-C) and 143 (SIGTERM) stopped
after the batch in flight: the same command with --resume goes on.
"""

import logging
import os
import sys

from specjax import config
from specjax.core import compilation_cache
from specjax.core.errors import ConfigError
from specjax.evaluation import calibrate
from specjax.evaluation import certify
from specjax.evaluation import evaluate
from specjax.evaluation import interrupts
from specjax.evaluation import listing
from specjax.evaluation import report
from specjax.evaluation import runner

LOG = logging.getLogger('specjax.eval')

DEFAULTS = {'run': 'eval.gin', 'bench': 'bench.gin', 'calibrate': 'calibrate.gin', 'certify': 'certify.gin'}
SINGLE = {'calibrate': calibrate, 'certify': certify}  # with flags of their own, so they come first
VERBS = (*DEFAULTS, 'plot', 'list')

# What users of other tools type.
ALIASES = {
    'pair': 'pairs', 'task': 'tasks', 'method': 'methods', 'temperature': 'temperatures', 'seed': 'seeds',
    'batch_size': 'batch_sizes', 'concurrency': 'batch_sizes', 'limit': 'max_samples', 'threshold': 'thresholds',
    'num_speculative_tokens': 'num_draft_tokens', 'speculative_num_steps': 'num_draft_tokens',
    'speculative_num_draft_tokens': 'num_draft_tokens', 'spec_draft_n_max': 'num_draft_tokens',
    'block_size': 'num_draft_tokens', 'output_dir': 'output_path',
}

SINGLE_ALIASES = {
    'pairs': 'pair', 'tasks': 'task', 'methods': 'method', 'output_dir': 'output_path',
    'num_speculative_tokens': 'num_draft_tokens'}

PROVIDED = ('operative_config', 'compilation_cache', 'load_runner')  # to `evaluate`, by this binary


def main(argv):
  """Runs one verb; returns the exit code."""
  logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stderr)
  for name in ('jax', 'absl', 'matplotlib'):
    logging.getLogger(name).setLevel(logging.WARNING)
  first = argv[0] if argv and argv[0] in SINGLE else None
  entry, aliases = (getattr(SINGLE[first], first), SINGLE_ALIASES) if first else (evaluate.evaluate, ALIASES)
  given = config.parse(argv, entry, aliases=aliases, max_operands=2)
  verb, *objects = given.operands or ('run',)
  if given.help:
    hidden = tuple(f'  --{name}:' for name in PROVIDED)
    lines = config.usage(entry, aliases=aliases).replace('collections.abc.', '').splitlines()
    print(__doc__, *(line for line in lines if not line.startswith(hidden)), sep='\n')
    return 0
  if verb not in VERBS or (objects and verb in DEFAULTS) or verb in SINGLE and not first:
    raise ConfigError(
        what='verb', where='command line', got=' '.join(given.operands), expected=f'one of {", ".join(VERBS)}',
        fix='Write it in front of its flags.' if verb in SINGLE else None)
  if verb not in DEFAULTS:
    _refuse_flags(verb, given)
  if verb == 'list':
    print(listing.text(objects[0] if objects else None))
    return 0
  if verb == 'plot':
    directory = objects[0] if objects else given.overrides.get('output_path')
    if directory is None:
      raise ConfigError(what='no directory', where='command line', fix='Write: python -m specjax.eval plot DIR')
    show(directory)
    return 0
  return single(verb, given) if first else sweep(verb, given)


def _refuse_flags(verb, given):
  """`ConfigError` for flags that a verb without a sweep would not read; `plot` may have its directory as --output_path."""
  read = ('output_path',) if verb == 'plot' and len(given.operands) == 1 else ()
  ignored = [f'--{name}' for name in given.overrides if name not in read]
  ignored += [f'--gin_file={name}' for name in given.files] + [f'--gin.{binding}' for binding in given.bindings]
  ignored += ['--gin_search_paths'] * bool(given.search_paths) + ['--allow_module'] * bool(given.allow_modules)
  if ignored:
    raise ConfigError(
        what='flag', where='command line', got=' '.join(ignored), expected=f'no flags with {verb!r}', fix='leave them out')


def _sources(verb, given):
  return given.sources() | ({} if given.files else {'files': (DEFAULTS[verb],)})


def sweep(verb, given):
  """Runs `evaluate` and writes its reports."""
  sources = _sources(verb, given)
  if verb == 'bench':
    sources['overrides'] = {'force_length': True} | sources['overrides']
  resolved = config.resolve(entry=evaluate.evaluate, provided=PROVIDED, **sources)
  operative = resolved.operative()
  LOG.info('%s', operative)
  directory = resolved.arguments()['output_path']
  try:
    resolved.call(
        operative_config=operative, compilation_cache=compilation_cache.keep(),
        load_runner=runner.load_runner)
  except interrupts.Stopped as stopped:
    print(f'{stopped}; every row in {os.path.join(directory, "rows.jsonl")} is whole. '
          'Run the same command with --resume to go on.', file=sys.stderr)
    return stopped.exit_code
  show(directory)
  return 0


def single(verb, given):
  """Runs `calibrate` or `certify`; what was found is the last thing on stdout."""
  sources = _sources(verb, given)
  more = {'load_runner': runner.load_runner} if verb == 'calibrate' else {}
  resolved = config.resolve(entry=getattr(SINGLE[verb], verb), provided=tuple(more), **sources)
  LOG.info('%s', resolved.operative())
  compilation_cache.keep()
  try:
    result = resolved.call(**more)
  except interrupts.Stopped as stopped:
    print(f'{stopped}; nothing was written', file=sys.stderr)
    return stopped.exit_code
  print(SINGLE[verb].text(result))
  return 0 if result.get('holds', True) else 1


def show(directory):
  """Rebuilds the reports; the table is the last thing on stdout."""
  written = report.write(directory)
  for name in ('report.html', 'report.md', 'results.json'):
    LOG.info('%s', written.directory / name)
  print(written.table)


if __name__ == '__main__':
  sys.exit(config.run_main(main))
