"""Trains models from scratch.

  python -m specjax.train --gin_file=runs/train_gemma_pair.gin --output_dir=DIR    the built-in models
  python -m specjax.train text --tasks=jsonl:mine.jsonl --output_dir=DIR           a pair on text of your own
  python -m specjax.train --gin_file=runs/train_text_pair.gin --data_dir=DATA --output_dir=DIR
  python -m specjax.train heads --text_run=DIR                                     draft heads on its target
  python -m specjax.train classifier --output_dir=DIR                              KL classifiers of backoff decoding

Flags are the parameters of `specjax.pairs.recipe.train`, or with `text` of `specjax.pairs.text_recipe.train`, or with
`classifier` of `specjax.pairs.classifier_recipe.train` (--help lists them), --gin_file=FILE and --gin.NAME=value; what
is not given comes from gin/train.gin, gin/train_text.gin or gin/train_classifier.gin. A gin file that imports one of
these modules needs no verb. Running the same command again continues from the newest valid
checkpoints, bit for bit. SIGTERM and SIGINT finish the step, save, and exit with code 75 (EX_TEMPFAIL: run again to go
on). Exit code 0: complete.
"""

import logging
import pathlib
import sys
from typing import Any, Callable, Mapping, NamedTuple

from specjax import config
from specjax.config import sources
from specjax.core import compilation_cache
from specjax.core import errors
from specjax.pairs import classifier_recipe
from specjax.pairs import recipe
from specjax.pairs import text_heads_recipe
from specjax.pairs import text_recipe
from specjax.training import stopping

ALIASES = {'model': 'models'}
DEFAULTS = 'train.gin'

# Parameters of the entry functions that this binary gives, not the configuration.
PROVIDED = ('stop', 'operative_config')


class Verb(NamedTuple):
  """One verb.

  Attributes:
    entry: the function whose parameters are flags.
    aliases: other names of flags.
    defaults: the file that is read without another.
    report: (arguments of the entry) -> None, what is made of a complete run; None without.
  """

  entry: Callable[..., bool]
  aliases: Mapping[str, str]
  defaults: str
  report: Callable[[Mapping[str, Any]], None] | None = None


def _draw(arguments):
  """Draws the figures of the classifiers of each pair."""
  from specjax.evaluation import reliability_plots  # The other verbs do not pay for matplotlib.

  for pair in arguments['pairs']:
    for path in reliability_plots.write(pathlib.Path(arguments['output_dir']) / pair):
      print(f'drew {path}', flush=True)


VERBS = {
    'builtin': Verb(recipe.train, ALIASES, DEFAULTS),
    'text': Verb(text_recipe.train, ALIASES | {'task': 'tasks'}, 'train_text.gin'),
    'heads': Verb(text_heads_recipe.train, ALIASES, 'train_heads.gin'),
    'classifier': Verb(classifier_recipe.train, {'pair': 'pairs'}, 'train_classifier.gin', _draw),
}


def chosen(argv):
  """(verb, words behind it): the word in front of the flags, or else what the gin files among them import.

  Raises:
    ConfigError: no such verb.
  """
  if argv and not argv[0].startswith('-'):
    if argv[0] not in VERBS:
      raise errors.ConfigError(what='verb', where='command line', got=argv[0], expected=f'one of {", ".join(VERBS)}')
    return VERBS[argv[0]], argv[1:]
  values = lambda flag: [
      word.partition('=')[2] or following for word, following in zip(argv, [*argv[1:], ''])
      if word.partition('=')[0].replace('-', '_') == flag]
  search_paths = [path for value in values('__gin_search_paths') for path in value.split(',') if path]
  found = sources.read(values('__gin_file'), (), search_paths=search_paths, config_root=None)
  imported = {statement.module for source in found for statement in source.imports}
  of_file = (verb for name, verb in VERBS.items() if name != 'builtin' and verb.entry.__module__ in imported)
  return next(of_file, VERBS['builtin']), argv


def main(argv):
  """Trains what the flags say; returns the exit code."""
  logging.getLogger('absl').setLevel(logging.WARNING)  # Orbax writes two dozen info lines for every checkpoint.
  verb, words = chosen(list(argv))
  given = config.parse(words, verb.entry, aliases=verb.aliases)
  if given.help:
    hidden = tuple(f'  --{name}:' for name in PROVIDED)
    lines = config.usage(verb.entry, aliases=verb.aliases).splitlines()
    print(__doc__, *(line for line in lines if not line.startswith(hidden)), sep='\n')
    return 0
  read = given.sources()
  if not read['files']:
    read['files'] = (verb.defaults,)
  resolved = config.resolve(entry=verb.entry, provided=PROVIDED, **read)
  compilation_cache.keep()
  with stopping.StopRequest() as stop:
    complete = resolved.call(stop=stop, operative_config=resolved.operative())
  if not complete:
    print('stopped by a signal; saved. Run the same command again to go on.', file=sys.stderr)
    return stopping.EXIT_RESUMABLE
  if verb.report is not None:
    verb.report(resolved.arguments())
  return 0


if __name__ == '__main__':
  sys.exit(config.run_main(main))
