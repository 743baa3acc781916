"""Decodes, times, scores and reports.

  python -m specjax.eval [run] --output_path=DIR [flags]     a sweep: pairs x tasks x methods x knobs x sampling x seeds
  python -m specjax.eval bench --output_path=DIR [flags]     speed alone: batch sizes x draft lengths, forced length
  python -m specjax.eval validate [run|bench] [flags]        all that either would refuse, and what it would cost
  python -m specjax.eval calibrate --method=M --pair=P --deferral_rate=R|--quality_floor=F --output_path=DIR [flags]
                                                             the threshold for a share to defer, or of quality to keep
  python -m specjax.eval calibrate --what=rescoring_weight --method=M --pair=P --output_path=DIR [flags]
                                                             the weight of a refinement for the most tokens per call
  python -m specjax.eval certify --method=M --pair=P --output_path=DIR [flags]
                                                             whether a method follows its law: enumerated, and sampled
  python -m specjax.eval drafts --pair=P --output_path=DIR [flags]
                                                             why drafts are accepted or not: entropy, repetition, oracles
  python -m specjax.eval compare DIR_A DIR_B                 two runs: what differs; quality, speed and outputs by point
  python -m specjax.eval plot DIR                            figures and reports again, from DIR/rows.jsonl
  python -m specjax.eval list [methods|tasks|pairs]          what can be named

Flags are the parameters of `specjax.evaluation.evaluate.evaluate` (or of the verb's own function; --help lists them),
--gin_file=FILE and --gin.NAME=value; the rest comes from gin/eval.gin or gin/VERB.gin. A verb stands before its flags.

Exit codes: 0 done; 1 a certificate that fails, or a calibration whose goal is missed on held-back prompts; 2 something
to mend, in one line (`validate`: a line for each); 130 (Ctrl-C) and 143 (SIGTERM) stopped after the batch in flight:
the same command with --resume goes on.
"""

import logging
import os
import sys

from specjax import config
from specjax.core import compilation_cache
from specjax.core.errors import ConfigError
from specjax.evaluation import calibrate
from specjax.evaluation import certify
from specjax.evaluation import drafts
from specjax.evaluation import evaluate
from specjax.evaluation import interrupts
from specjax.evaluation import runner
from specjax.evaluation import validate
from specjax.evaluation import verbs

LOG = logging.getLogger('specjax.eval')

PROVIDED = ('operative_config', 'compilation_cache', 'load_runner')  # to the entry functions, by this binary


def main(argv):
  """Runs one verb; returns the exit code."""
  logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stderr)
  for name in ('jax', 'absl', 'matplotlib'):
    logging.getLogger(name).setLevel(logging.WARNING)
  verb, words = (argv[0], argv[1:]) if argv and not argv[0].startswith('-') else ('run', argv)
  chosen, problems = verbs.lookup(verb), []
  flags = {'aliases': chosen.aliases, 'provided': PROVIDED}
  if verb == 'validate':
    given, problems = config.parse_all(words, chosen.entry, max_operands=3, **flags)
  else:
    given = config.parse(words, chosen.entry, max_operands=3, **flags)
  if given.help:
    print(__doc__, config.usage(chosen.entry, **flags).replace('collections.abc.', ''), sep='\n')
    return 0
  _check_words(verb, chosen, given, words)
  if chosen.defaults is None:
    print(chosen.entry(*given.operands, **given.overrides))
    return 0
  if verb == 'validate':
    return check(given, problems)
  return sweep(verb, given) if verb in ('run', 'bench') else single(verb, given)


def _check_words(verb, chosen, given, words):
  """`ConfigError` for words behind a verb that it does not take, and for a configuration that it would not read."""
  if len(given.operands) > chosen.max_words:
    if chosen.max_words:
      raise ConfigError(what=f'words behind {verb}', where='command line', got=' '.join(given.operands),
                        expected=f'at most {chosen.max_words}')
    verbs.lookup(given.operands[0])
    raise ConfigError(what='verb', where='command line', got=' '.join(given.operands), expected=f'{verb} alone',
                      fix='A verb stands in front of its flags.')
  ignored = [word for word in words if word.startswith(('--gin', '--allow'))]
  if ignored and chosen.defaults is None:
    raise ConfigError(what='flag', where='command line', got=' '.join(ignored), fix=f'{verb} reads no configuration.')


def _sources(verb, given):
  """The keyword arguments of `config.resolve` beside the entry."""
  sources = given.sources() | ({} if given.files else {'files': (verbs.VERBS[verb].defaults,)})
  if verb == 'bench':
    sources['overrides'] = {'force_length': True} | sources['overrides']
  return sources


def sweep(verb, given):
  """Runs `evaluate` and writes its reports; the table is the last thing on stdout."""
  resolved = config.resolve(entry=evaluate.evaluate, provided=PROVIDED, **_sources(verb, given))
  operative = resolved.operative()
  LOG.info('%s', operative)
  directory = resolved.arguments()['output_path']
  try:
    resolved.call(
        operative_config=operative, compilation_cache=compilation_cache.keep(), load_runner=runner.load_runner)
  except interrupts.Stopped as stopped:
    print(f'{stopped}; every row in {os.path.join(directory, "rows.jsonl")} is whole. '
          'Run the same command with --resume to go on.', file=sys.stderr)
    return stopped.exit_code
  print(verbs.plot(directory))
  return 0


def check(given, problems):
  """Validates a sweep; what it is and all that is wrong with it go to stdout."""
  verb = given.operands[0] if given.operands else 'run'
  if verb not in ('run', 'bench'):
    raise ConfigError(what='validate', where='command line', got=verb, expected='run or bench')
  resolved, found = config.resolve_all(
      entry=evaluate.evaluate, provided=PROVIDED, placeholders={'output_path': ''}, **_sources(verb, given))
  problems = [*problems, *found]
  if resolved is None:
    findings = validate.Findings(problems, ['nothing else can be told before that is mended'], [])
  else:
    findings = validate.validate(resolved.arguments(), problems=problems)
  print(validate.text(findings))
  return 2 if findings.problems else 0


def single(verb, given):
  """Runs `calibrate`, `certify` or `drafts`; what was found is the last thing on stdout."""
  module = {'calibrate': calibrate, 'certify': certify, 'drafts': drafts}[verb]
  more = {} if verb == 'certify' else {'load_runner': runner.load_runner}
  resolved = config.resolve(entry=verbs.VERBS[verb].entry, provided=tuple(more), **_sources(verb, given))
  LOG.info('%s', resolved.operative())
  compilation_cache.keep()
  try:
    result = resolved.call(**more)
  except interrupts.Stopped as stopped:
    print(f'{stopped}; nothing was written', file=sys.stderr)
    return stopped.exit_code
  print(module.text(result))
  return 0 if result.get('holds', True) else 1


if __name__ == '__main__':
  sys.exit(config.run_main(main))
