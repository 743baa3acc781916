"""The configuration of a run: gin files, gin bindings and flat flags, bound to one entry function. See `runtime`.

A binary is these lines; `evaluate` never sees a flag or gin:

    def main(argv):
      given = config.parse(argv, evaluate, aliases=ALIASES)
      run = config.resolve(entry=evaluate, **given.sources())
      ...                      # run.arguments()['output_dir'], run.operative()
      run.call()

    sys.exit(config.run_main(main))
"""

from specjax.config.flags import Flags, parse, run_main, usage
from specjax.config.problems import parse_all, resolve_all
from specjax.config.runtime import Config, Run, load, resolve

__all__ = ['Config', 'Flags', 'Run', 'load', 'parse', 'parse_all', 'resolve', 'resolve_all', 'run_main', 'usage']
